//! What the documents promise is shown by tests that are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The tests that a document names, such as `it::commands::everyone_gets_what_is_sent_to_all`.
fn named(document: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new("docs").join(document)).unwrap();
    let words = text.split('`').filter(|word| word.starts_with("it::") || word.starts_with("faults::"));
    words.filter(|word| !word.ends_with('…')).map(str::to_owned).collect()
}

/// Where the test would be, and its name.
fn place(test: &str) -> (PathBuf, &str) {
    let (module, name) = test.rsplit_once("::").unwrap();
    (Path::new("tests").join(module.replace("::", "/")).with_extension("rs"), name)
}

#[test]
fn every_test_that_the_promises_name_is_there_and_both_languages_name_the_same() {
    let tests = named("guarantees.md");
    assert!(tests.len() > 30, "{tests:?}");
    assert_eq!(tests, named("guarantees.zh-CN.md"));
    let is_there = |test: &&String| {
        let (file, name) = place(test);
        let source = std::fs::read_to_string(file).unwrap_or_default();
        source.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == name)
    };
    assert_eq!(tests.iter().filter(|test| !is_there(test)).collect::<Vec<_>>(), [] as [&String; 0]);
}
