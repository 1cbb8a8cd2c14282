//! Whatever the configuration file holds: it is read or refused, and what is said of it points into the file.

use std::collections::BTreeSet;

use super::document::Document;
use super::finding::Finding;
use super::read::read;

/// The target: see `tests/src/fuzz`.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (config, findings) = read(text);
    assert_eq!(config.is_none(), findings.iter().any(Finding::is_error), "{findings:?}");
    let lines: Vec<&str> = text.split('\n').collect();
    let names: BTreeSet<String> =
        Document::parse(text).map_or_else(|_| BTreeSet::new(), |it| it.names(&[]).into_iter().collect());
    for finding in &findings {
        assert!(!finding.message.is_empty());
        let Some(place) = finding.place else {
            // Only of what is not there at all can nobody say where it stands.
            let is_there = finding.path.first().is_none_or(|name| names.contains(name));
            assert!(!is_there, "it has no place: {finding}");
            continue;
        };
        let line = lines.get(place.line as usize - 1).unwrap_or_else(|| panic!("no such line: {finding}"));
        assert!((1..=line.chars().count() + 1).contains(&(place.column as usize)), "no such column: {finding}");
    }
    let (again, same) = read(text);
    assert_eq!(findings, same, "it reads differently the second time");
    assert_eq!(config.map(|config| config.digest), again.map(|config| config.digest));
}

#[test]
fn whatever_stands_in_the_file_findings_point_into_it() {
    let corpus = tests::fuzz::Corpus {
        seeds: tests::fuzz::kept_seeds("config"),
        words: &[
            "[server]\n",
            "[operators]\n",
            "[queue]\n",
            "[sources.a]\n",
            "[[routes]]\n",
            "[schedules.a]\n",
            "cron = \"0 2 * * *\"\n",
            "[runbooks.a.jobs]\n",
            "[databases.main]\n",
            "[stores.a]\n",
            "[channels.a]\n",
            "[worker]\n",
            "[vault]\n",
            " = ",
            "\"",
            "'",
            "'''",
            "\"\"\"",
            "\n",
            "\r\n",
            "{ ",
            " }",
            "[",
            "]",
            ".",
            "# ",
            "${env:A}",
            "${vault:a#b}",
            "${",
            "{{ event.git.sha }}",
            "{{ ",
            "true",
            "1979-05-27T07:32:00Z",
            "inf",
            "0x",
            "1_0",
            "when = \"event.target == 'a'\"\n",
            "if = \"always()\"",
            "needs = [\"a\"]",
            "job = \"noop\"",
            "with = {}",
            "\u{e4}",
        ],
        pairs: &[("[", "]"), ("{ a = ", " }"), ("a.", ""), ("\"", "\"")],
    };
    tests::fuzz::run("config", &corpus, 300, config);
}
