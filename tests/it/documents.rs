//! The documents: links lead somewhere, and each alarm has its part on the page that says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The project's folder.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The documents that people read, by path.
fn documents() -> BTreeMap<PathBuf, String> {
    let pages = std::fs::read_dir(top().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let others = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| top().join(name));
    pages.chain(others).map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The headings of a page, as links name them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let headings = page.lines().filter(|line| {
        in_code ^= line.starts_with("```");
        !in_code && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
        kept.map(|character| if character == ' ' { '-' } else { character }).collect()
    };
    headings.map(anchor).collect()
}

/// Where the links of a page lead to that are not addresses of the web.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|link| !link.contains("://") && !link.contains(' '))
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let documents = documents();
    let mut broken = Vec::new();
    for (path, page) in &documents {
        for link in links(page) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let leads = match std::fs::read_to_string(&target) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => target.exists() && anchor.is_empty(),
            };
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(documents.len() > 10);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_alarm_that_is_proposed_says_what_to_do() {
    let page = std::fs::read_to_string(top().join("docs/metrics.md")).unwrap();
    let (_, alarms) = page.split_once("## What to be woken by").expect("the alarms");
    let rows: Vec<&str> = alarms.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 7, "{rows:?}");
    for row in rows {
        assert!(row.contains("](alarms.md#"), "no link to its part in docs/alarms.md: {row}");
    }
}
