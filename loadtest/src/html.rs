//! A report as a page that needs nothing else: one file, which tells a browser to fetch nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::sheet::Sheet;
use crate::svg::{self, Place};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;background:#fff;color:#1f2328;font:15px/1.5 system-ui,sans-serif}\
main{max-width:60rem;margin:0 auto;padding:1.5rem}\
h1{font-size:1.35rem;line-height:1.3;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
.verdict{display:inline-block;padding:.1rem .6rem;border:1px solid;border-radius:1rem;font-weight:600;margin:.5rem 0}\
.pass{color:#1a7f37}.fail{color:#d1242f}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.2rem 1.25rem .2rem 0;border-bottom:1px solid #d1d9e0;font-weight:400;white-space:nowrap}\
thead th{font-weight:600}.part th{padding-left:1.25rem}th,.soft{color:#59636e}thead th{color:inherit}\
ul{padding-left:1.25rem;margin:.5rem 0}.facts th{vertical-align:top}.facts td{white-space:normal;overflow-wrap:anywhere}\
code{font:.9em ui-monospace,monospace}figure{margin:1rem 0;break-inside:avoid}svg{display:block;width:100%;height:auto}\
@media screen and (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td{border-color:#30363d}\
th,.soft{color:#9198a1}.pass{color:#3fb950}.fail{color:#f85149}}\
@media print{main{max-width:none;padding:0}a{color:inherit}}";

/// Writes it. `machine` is names and values of what the run took place on, the command among them.
pub(crate) fn page(sheet: &Sheet, machine: &[(&'static str, String)]) -> String {
    let (heads, rows): (Vec<_>, Vec<_>) = sheet.rows.iter().partition(|(label, _)| label.is_empty());
    let verdict = if sheet.fault.is_none() { "verdict pass" } else { "verdict fail" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (sheet.title) }
                style { (PreEscaped(STYLE)) (PreEscaped(svg::STYLE)) }
            }
            body {
                main {
                    h1 { (sheet.title) }
                    p class=(verdict) { (sheet.verdict()) }
                    div.wide {
                        table {
                            thead {
                                @for (_, cells) in &heads {
                                    tr { td {} @for cell in cells { th scope="col" { (cell) } } }
                                }
                            }
                            tbody {
                                @for (label, cells) in &rows {
                                    tr.part[label.starts_with(' ')] {
                                        th scope="row" { (label.trim()) }
                                        @for cell in cells { td { (cell) } }
                                    }
                                }
                            }
                        }
                    }
                    (list("Beside each other", &sheet.lines))
                    (list("What to know before believing it", &sheet.notes))
                    @if !sheet.charts.is_empty() {
                        h2 { "Charts" }
                        @for chart in &sheet.charts {
                            figure { (svg::lines(chart, Place::Page)) }
                        }
                    }
                    h2 { "The run" }
                    table.facts {
                        @for (name, value) in machine.iter().chain(&sheet.facts) {
                            tr { th scope="row" { (name) } td { @if *name == "command" { code { (value) } } @else { (value) } } }
                        }
                    }
                }
            }
        }
    }
    .into_string()
}

fn list(title: &str, lines: &[String]) -> Markup {
    html! {
        @if !lines.is_empty() {
            h2 { (title) }
            ul { @for line in lines { li { (line) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{Chart, Series};

    fn sheet() -> Sheet {
        let line = Series { name: "<b>gateway</b>".to_owned(), unit: "MiB", points: vec![(0.0, 1.0), (1.0, 2.0)] };
        Sheet {
            title: "<script>alert(1)</script>".to_owned(),
            facts: vec![("Redis", "7 & 8".to_owned())],
            rows: vec![
                (String::new(), vec!["<i>gateway</i>".to_owned()]),
                ("latency p50, ms".to_owned(), vec!["0.123".to_owned()]),
                ("        p99".to_owned(), vec!["4.567".to_owned()]),
            ],
            lines: vec!["gateway ÷ floor: 1.10".to_owned()],
            notes: vec!["<u>doubt</u>".to_owned()],
            fault: None,
            charts: vec![Chart { title: "<s>memory</s>".to_owned(), across: "seconds", lines: vec![line] }],
        }
    }

    #[test]
    fn the_page_shows_what_the_terminal_shows() {
        let (sheet, machine) = (sheet(), [("command", "loadtest idle".to_owned())]);
        let page = page(&sheet, &machine);
        for text in ["0.123", "4.567", "gateway ÷ floor: 1.10", "7 &amp; 8", "loadtest idle", "pass", "<svg"] {
            assert!(page.contains(text), "{text}: {page}");
        }
        let failed = Sheet { fault: Some("not everyone was there"), ..sheet };
        assert!(super::page(&failed, &machine).contains("FAIL: not everyone was there"));
    }

    #[test]
    fn the_page_fetches_nothing_and_takes_no_name_for_markup() {
        let page = page(&sheet(), &[]);
        for text in ["<script", "<b>", "<i>", "<u>", "<s>", "http://", "https://", "src=", "href=", "url("] {
            assert!(!page.contains(text), "{text}: {page}");
        }
    }
}
