//! Warns about secrets that stand in the file itself.

use toml::de::DeValue;
use url::Url;

use super::document::{Document, Part};
use super::finding::Finding;

/// Where secrets belong: a star stands for every name. Texts that are addresses are secrets only with a password.
const PLACES: &[&[&str]] = &[
    &["operators", "token"],
    &["queue", "ledger"],
    &["queue", "broker"],
    &["amqp", "url"],
    &["vault", "identity"],
    &["sources", "*", "secrets", "*"],
    &["connections", "github", "token"],
    &["connections", "vercel", "token"],
    &["databases", "*", "url"],
    &["stores", "*", "credentials"],
    &["stores", "*", "identity"],
    &["channels", "*", "slack"],
    &["channels", "*", "discord"],
    &["channels", "*", "pagerduty", "routing_key"],
    &["channels", "*", "mail", "login", "password"],
    &["channels", "*", "resend", "key"],
    &["channels", "*", "webhook", "secret"],
    &["channels", "*", "heartbeat", "url"],
    &["heartbeat", "url"],
    &["credentials", "*", "headers", "*"],
    &["rotations", "*", "aws_access_key", "credentials"],
];

/// A warning for each literal secret.
pub(crate) fn warnings(document: &Document<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for place in PLACES {
        collect(document.part(&[]), place, &mut Vec::new(), &mut found);
    }
    found
        .into_iter()
        .map(|path| {
            let finding = Finding::warning("a secret stands in the file")
                .help("write `${env:NAME}`, `${file:path}` or `${vault:name#key}` instead");
            let place = document.place(&path);
            Finding { path, ..finding }.at(place)
        })
        .collect()
}

fn collect(part: Option<&Part<'_>>, place: &[&str], path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let Some(part) = part else { return };
    let Some((step, rest)) = place.split_first() else {
        if part.get_ref().as_str().is_some_and(is_secret) {
            found.push(path.clone());
        }
        return;
    };
    let mut descend = |name: &str, part: Option<&Part<'_>>| {
        path.push(name.to_owned());
        collect(part, rest, path, found);
        path.pop();
    };
    match part.get_ref() {
        DeValue::Table(table) if *step == "*" => {
            table.iter().for_each(|(key, part)| descend(key.get_ref(), Some(part)));
        }
        DeValue::Table(table) => descend(step, table.get(*step)),
        DeValue::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| descend(&index.to_string(), Some(item)));
        }
        _ => {}
    }
}

/// Whether a text that stands where a secret belongs is one: it refers to nothing, and is not an address without a
/// password. A web address is one by itself: whoever has a channel's may write to it.
fn is_secret(text: &str) -> bool {
    if text.contains("${") || text == "in-process" || text.starts_with("sqlite:") {
        return false;
    }
    match Url::parse(text) {
        Ok(url) if url.has_host() && !matches!(url.scheme(), "http" | "https") => url.password().is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_secrets_are_warned_of_and_plain_addresses_are_not() {
        let text = "\
[operators]
token = 'hunter2'
[queue]
ledger = 'postgres://np:pw@db/np'
broker = 'amqp://rabbit'
[sources.github]
secrets = ['${env:A}', 'b']
[databases.main]
url = 'sqlite:app.db'
[databases.other]
url = 'postgress://db/np'
[databases.third]
url = 'postgress://np:pw@db/np'
[channels.team]
slack = 'https://hooks.slack.com/services/T/B/X'
";
        let document = Document::parse(text).unwrap();
        let mut found: Vec<String> = warnings(&document).iter().map(|finding| finding.path.join(".")).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "channels.team.slack",
                "databases.third.url",
                "operators.token",
                "queue.ledger",
                "sources.github.secrets.1"
            ]
        );
        assert!(!format!("{:?}", warnings(&document)).contains("hunter2"));
    }
}
