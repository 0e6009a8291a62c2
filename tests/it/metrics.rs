//! The pages on metrics explain every series, and name none that is not there; nor do the dashboard and the alert rules.

use std::collections::BTreeSet;

use moongate::metrics::{Attempt, ConsumerGroup, EventLabel, Kind, Metrics, Outcome, Reason, RedisCommand};
use serde_json::{Value, json};

use crate::harness::Node;
use crate::redis::Redis;

const PAGES: [&str; 2] = ["docs/metrics.md", "docs/metrics.zh-CN.md"];
const DASHBOARD: &str = "deploy/grafana/dashboards/moongate.json";
const RULES: &str = "deploy/alerts.yml";

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap()
}

/// What `/metrics` shows when each series has something to show: one with labels is not there before.
fn everything() -> String {
    let all = Metrics::new();
    let reasons = [&all.refused, &all.closed, &all.bus_lost, &all.events_lost, &all.spans_dropped];
    let of_php = [&all.php_refused, &all.php_ignored, &all.php_events_lost];
    for family in reasons.into_iter().chain(of_php) {
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
    all.page(0, 0, 0, 0)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_the_series_as_they_are_explained() {
    let redis = Redis::start().await;
    let url = redis.url();
    let node = Node::start_with(&[("MOONGATE_REDIS_URL", url.as_str())]).await.until_ready().await;
    node.ask("sendToAll", json!({"message": "hello"})).await;
    let shown = series(&node.get("/metrics").await.text());
    assert!(shown.contains(&("moongate_commands_total{op,outcome}".into(), "counter".into())), "{shown:?}");
    let explained = explained(PAGES[0]);
    assert_eq!(shown.difference(&explained).collect::<Vec<_>>(), [] as [&(String, String); 0]);
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
    for file in PAGES.into_iter().chain([DASHBOARD, RULES]) {
        let text = read(file);
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let named: BTreeSet<_> = words.filter(|word| word.starts_with("moongate_")).map(str::to_owned).collect();
        assert!(named.len() > 20, "{file}: {named:?}");
        assert_eq!(named.difference(&names).collect::<Vec<_>>(), [] as [&String; 0], "{file}");
    }
    serde_json::from_str::<Value>(&read(DASHBOARD)).unwrap();
}
