//! Where a report goes: to the terminal, as JSON, into a page.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::sheet::Sheet;
use crate::{Result, html, machine, progress};

/// Options of every mode that reports.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write the report as a page, too: with charts, in one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl OutputArgs {
    /// Makes the file for the page, before hours of work for it.
    pub(crate) fn create(&self) -> Result<Option<File>> {
        let create = |path: &PathBuf| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(self.html.as_ref().map(create).transpose()?)
    }

    /// Shows a report; `facts` are more names and values of the run.
    pub(crate) fn show(
        &self,
        file: Option<File>,
        report: &impl Serialize,
        sheet: &Sheet,
        facts: Vec<(&'static str, String)>,
    ) -> Result<()> {
        progress::clear();
        if let Some(mut file) = file {
            let facts = [machine::facts(), facts].concat();
            file.write_all(html::page(sheet, &facts).as_bytes())?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(report)?);
        } else {
            print!("{}", sheet.text());
        }
        Ok(())
    }
}

/// A command line as it was typed, without what is nobody's business.
pub(crate) fn command(words: impl Iterator<Item = String>) -> String {
    const HIDDEN: &str = "***";
    let mut before = String::new();
    let word = |word: String| {
        let secret = |key: &str| ["TOKEN", "SECRET", "PASSWORD", "KEY"].iter().any(|part| key.contains(part));
        let shown = match word.split_once('=') {
            _ if before == "--token" => HIDDEN.to_owned(),
            Some((key, _)) if key == "--token" || secret(key) => format!("{key}={HIDDEN}"),
            _ => word.clone(),
        };
        before = word;
        quoted(shown)
    };
    words.map(word).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: String) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_=./:,@%+".contains(char);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let words = ["loadtest", "idle", "--env", "A=b c", "--spawn", "it's/here", ""];
        let line = r"loadtest idle --env 'A=b c' --spawn 'it'\''s/here' ''";
        assert_eq!(command(words.map(str::to_owned).into_iter()), line);
    }

    #[test]
    fn a_report_tells_no_secret() {
        let line = "loadtest idle --token geheim --token=geheim --env MOONGATE_API_TOKEN=geheim --env A=b --clients 5";
        let shown = "loadtest idle --token '***' '--token=***' --env 'MOONGATE_API_TOKEN=***' --env A=b --clients 5";
        assert_eq!(command(line.split(' ').map(str::to_owned)), shown);
    }
}
