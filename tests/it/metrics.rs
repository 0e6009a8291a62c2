//! The pages on metrics explain every series and every reason, and name none that is not there; nor do the dashboard and the
//! alert rules.

use std::collections::BTreeSet;

use moongate::metrics::{Attempt, ConsumerGroup, EventLabel, Held, Kind, Metrics, Outcome, Reason, RedisCommand};
use serde_json::Value;

const PAGES: [&str; 2] = ["docs/metrics.md", "docs/metrics.zh-CN.md"];
const DASHBOARD: &str = "deploy/grafana/dashboards/moongate.json";
const RULES: &str = "deploy/alerts.yml";
/// They name a few.
const OPERATING: [&str; 2] = ["docs/operating.md", "docs/operating.zh-CN.md"];

/// Where each series by reason gets its reasons: in the brackets that these open in a file.
const REASONS: [(&str, &[(&str, &str)]); 8] = [
    (
        "moongate_handshakes_refused_total",
        &[("edge/mod.rs", "refuse("), ("edge/handshake.rs", "refuse("), ("edge/handshake.rs", "not_now(")],
    ),
    (
        "moongate_disconnections_total",
        &[("gateway/mod.rs", "fn kind(close: &Close) -> &'static str {"), ("cluster/members/sweep.rs", "Reason {")],
    ),
    (
        "moongate_bus_lost_total",
        &[("gateway/heard.rs", "lost("), ("cluster/bus.rs", "lost("), ("cluster/bus.rs", "Reason {")],
    ),
    (
        "moongate_php_refused_total",
        &[("php/inner.rs", "refused("), ("php/inner.rs", "Refused("), ("php/register.rs", "Reason {")],
    ),
    ("moongate_php_ignored_total", &[("php/commands.rs", "ignored("), ("php/commands.rs", "Reason {")]),
    ("moongate_php_events_lost_total", &[("php/workers.rs", "lost(")]),
    ("moongate_events_lost_total", &[("event.rs", "lost("), ("webhook/mod.rs", "lost("), ("hub/journal.rs", "lost(")]),
    ("moongate_spans_dropped_total", &[("trace/otlp.rs", "dropped(")]),
];

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap()
}

/// What `/metrics` shows when each series has something to show: one with labels is not there before.
fn everything() -> String {
    let all = Metrics::new();
    for family in [&all.refused, &all.closed, &all.php_refused, &all.php_ignored] {
        drop(family.get_or_create(&Reason { reason: "" }));
    }
    for family in [&all.bus_published, &all.bus_publish_errors, &all.bus_heard] {
        drop(family.get_or_create(&Kind { kind: "" }));
    }
    for family in [&all.webhook_requests, &all.task_attempts] {
        drop(family.get_or_create(&Attempt { outcome: "" }));
    }
    drop(all.commands.get_or_create(&Outcome { op: "", outcome: "" }));
    drop(all.redis_commands.get_or_create(&RedisCommand { command: "" }));
    drop(all.events_told.get_or_create(&EventLabel { event: "", to: "" }));
    drop(all.events_lag.get_or_create(&ConsumerGroup { group: String::new() }));
    all.page(&Held::default())
}

/// The names of families, and their types.
fn types(exposition: &str) -> impl Iterator<Item = (&str, &str)> {
    exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
}

/// The series of an exposition as the pages name them, such as `moongate_commands_total{op,outcome}`, a `counter`.
fn series(exposition: &str) -> BTreeSet<(String, String)> {
    let series = types(exposition).map(|(family, kind)| {
        let name = if kind == "counter" { format!("{family}_total") } else { family.to_owned() };
        let mut samples = exposition.lines().filter_map(|line| line.strip_prefix(name.as_str())?.strip_prefix('{'));
        let labels =
            samples.next().and_then(|sample| sample.split_once('}')).map_or_else(String::new, |(labels, _)| {
                let names: Vec<_> = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
                format!("{{{}}}", names.join(","))
            });
        (format!("{name}{labels}"), kind.to_owned())
    });
    series.collect()
}

/// The rows of a page.
fn explained(page: &str) -> BTreeSet<(String, String)> {
    let text = read(page);
    let rows = text.lines().filter(|line| line.starts_with("| `moongate_"));
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).skip(1);
        (cells.next().unwrap(), cells.next().unwrap())
    };
    rows.map(row).collect()
}

#[test]
fn every_series_is_explained_in_both_languages() {
    let source = read("src/metrics.rs");
    let calls = ["series!(", "registry.register("].into_iter().flat_map(|call| source.split(call).skip(1));
    let registered: BTreeSet<_> =
        calls.filter_map(|call| Some(format!("moongate_{}", call.split('"').nth(1)?))).collect();
    let everything = everything();
    let shown: BTreeSet<_> = types(&everything).map(|(family, _)| family.to_owned()).collect();
    assert_eq!(shown, registered, "this test has to give each family with labels a sample");
    for page in PAGES {
        assert_eq!(explained(page), series(&everything), "{page}");
    }
}

/// Whether this may be the value of a label.
fn is_value(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The reasons of a series, as the source says them.
fn reasons(places: &[(&str, &str)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, opening) in places {
        let source = read(&format!("src/{file}"));
        assert!(source.contains(opening), "{file} has no {opening}");
        for rest in source.split(opening).skip(1) {
            let mut depth = 1;
            let inside = rest.split_inclusive(['(', ')', '{', '}']).take_while(|part| {
                let goes_on = depth > 0;
                depth += if part.ends_with(['(', '{']) { 1 } else { -1 };
                goes_on
            });
            let inside: String = inside.collect();
            found.extend(inside.split('"').skip(1).step_by(2).filter(|word| is_value(word)).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_reason_is_explained_in_both_languages_and_what_was_lost_is_there_at_zero_and_in_its_alert() {
    let fresh = Metrics::new().page(&Held::default());
    let rules = read(RULES);
    for (series, places) in REASONS {
        let reasons = reasons(places);
        assert!(reasons.len() > 1, "{series}: {reasons:?}");
        for page in PAGES {
            let text = read(page);
            let row = text.lines().find(|line| line.starts_with(&format!("| `{series}{{reason}}`"))).unwrap();
            let counted = row.split('|').nth(3).unwrap();
            let explained: BTreeSet<_> =
                counted.split('`').skip(1).step_by(2).filter(|word| is_value(word)).map(str::to_owned).collect();
            assert_eq!(explained, reasons, "{page}: {series}");
        }
        if !series.ends_with("_lost_total") {
            continue;
        }
        let samples =
            fresh.lines().filter_map(|line| line.strip_prefix(&format!("{series}{{reason=\""))?.strip_suffix("\"} 0"));
        assert_eq!(samples.map(str::to_owned).collect::<BTreeSet<_>>(), reasons, "{series} at the start");
        let alert = rules.split("- alert:").find(|alert| alert.contains(series)).unwrap();
        for reason in &reasons {
            assert!(
                alert.split(|letter: char| !is_value(&letter.to_string())).any(|word| word == reason),
                "{reason}: {alert}"
            );
        }
    }
}

#[test]
fn the_dashboard_and_the_rules_ask_for_no_reason_or_outcome_that_is_not_there() {
    let mut known: BTreeSet<String> = REASONS.into_iter().flat_map(|(_, places)| reasons(places)).collect();
    for (file, opening) in
        [("webhook/mod.rs", "let outcome = match &result {"), ("gateway/mod.rs", "fn code(&self) -> &'static str {")]
    {
        known.extend(reasons(&[(file, opening)]));
    }
    for file in [DASHBOARD, RULES] {
        // The dashboard's quotes stand in quotes.
        let text = read(file).replace('\\', "");
        for label in ["reason", "outcome"] {
            for comparison in ["=", "!=", "=~", "!~"] {
                let asked = format!("{label}{comparison}\"");
                for rest in text.split(&asked).skip(1) {
                    for value in rest.split('"').next().unwrap().split('|') {
                        assert!(known.contains(value), "{file}: {asked}{value}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_pages_the_dashboard_and_the_rules_name_no_series_that_is_not_there() {
    let mut names = BTreeSet::new();
    for (name, kind) in series(&everything()) {
        let name = name.split('{').next().unwrap();
        names.insert(name.to_owned());
        if kind == "histogram" {
            names.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
        }
    }
    for file in PAGES.into_iter().chain([DASHBOARD, RULES]).chain(OPERATING) {
        let text = read(file);
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let named: BTreeSet<_> = words.filter(|word| word.starts_with("moongate_")).map(str::to_owned).collect();
        let least = if OPERATING.contains(&file) { 1 } else { 20 };
        assert!(named.len() > least, "{file}: {named:?}");
        assert_eq!(named.difference(&names).collect::<Vec<_>>(), [] as [&String; 0], "{file}");
    }
    serde_json::from_str::<Value>(&read(DASHBOARD)).unwrap();
}
