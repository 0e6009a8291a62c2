//! What a mode tells in the end, whoever shows it: a terminal, a page, or Markdown.

use crate::report::table;
use crate::series::Chart;

/// A table, sentences and charts.
#[derive(Debug)]
pub(crate) struct Sheet {
    /// One line for the reader.
    pub(crate) title: String,
    /// What the figures come from beside the machine, such as the version of Redis: names and values.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// A label and the cells of each row. A row without a label names the columns; a label that begins with spaces belongs
    /// to the one above it.
    pub(crate) rows: Vec<(String, Vec<String>)>,
    /// Sentences below the table, such as ratios.
    pub(crate) lines: Vec<String>,
    /// What casts doubt on the figures.
    pub(crate) notes: Vec<String>,
    /// What is wrong in all, or nothing.
    pub(crate) fault: Option<&'static str>,
    /// More than the terminal can show.
    pub(crate) charts: Vec<Chart>,
}

impl Sheet {
    /// As plain text, without the charts.
    pub(crate) fn text(&self) -> String {
        let rows: Vec<(&str, Vec<String>)> = self.rows.iter().map(|(label, cells)| (&**label, cells.clone())).collect();
        let mut out = format!("{}\n\n{}", self.title, table(&rows));
        for line in &self.lines {
            out.push_str(line);
            out.push('\n');
        }
        for note in &self.notes {
            out.push_str("note: ");
            out.push_str(note);
            out.push('\n');
        }
        out.push_str(&self.verdict());
        out.push('\n');
        out
    }

    /// `pass`, or `FAIL` and why.
    pub(crate) fn verdict(&self) -> String {
        self.fault.map_or("pass".to_owned(), |fault| format!("FAIL: {fault}"))
    }
}
