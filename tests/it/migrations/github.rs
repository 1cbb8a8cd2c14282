//! A migrations folder at a commit, from GitHub's API.

use std::time::Duration;

use axum::http::StatusCode;
use schemas::Timestamp;
use tests::migration_world::{Github, REPOSITORY, TOKEN, words};
use url::Url;
use worker::Failure;
use worker::migrations::folder::SourceFile;
use worker::migrations::github::Repository;

const FILES: [(&str, &str); 3] = [("1_a.sql", "create table a (id int);"), ("1_a.down.sql", "x"), ("README.md", "y")];

/// Reads a folder as the jobs do.
async fn read(url: &Url, token: &str, commit: &str, path: &str) -> Result<Vec<SourceFile>, Failure> {
    let http = worker::world::http_client();
    repository(&http, url, token).files(commit, path).await
}

fn repository<'r>(http: &'r reqwest::Client, api_url: &'r Url, token: &str) -> Repository<'r> {
    Repository { http, api_url, token: token.to_owned().into(), name: REPOSITORY, now: Timestamp::UNIX_EPOCH }
}

#[tokio::test]
async fn a_folder_is_read_at_its_commit_and_only_what_is_run_is_fetched() {
    let github = Github::default();
    let url = github.start().await;
    let old = github.commit(&FILES);
    let long = "-- é and more\n".repeat(100);
    github.commit(&[("1_a.sql", &long)]);
    let files = read(&url, TOKEN, &old, "./db/migrations/").await.unwrap();
    let texts: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.text.as_deref())).collect();
    assert_eq!(texts, [("1_a.sql", Some(FILES[0].1)), ("1_a.down.sql", None), ("README.md", None)]);
    assert_eq!(github.requests(), 4, "two trees on the way, the folder's, one blob");
    let newest = github.commit(&[("1_a.sql", &long)]);
    assert_eq!(read(&url, TOKEN, &newest, "db/migrations").await.unwrap()[0].text, Some(long));
}

#[tokio::test]
async fn what_is_not_there_or_not_whole_is_given_up_with_what_to_check() {
    let github = Github::default();
    let url = github.start().await;
    let commit = github.commit(&FILES);
    let said = words(&read(&url, TOKEN, &"0".repeat(40), "db/migrations").await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("check `repository`"), "{said}");
    let said = words(&read(&url, TOKEN, &commit, "db/migration").await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("`migration` is not there"), "{said}");
    github.truncate();
    let said = words(&read(&url, TOKEN, &commit, "db/migrations").await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("could be missed"), "{said}");
}

#[tokio::test]
async fn a_wrong_token_is_given_up_and_never_shown() {
    let github = Github::default();
    let url = github.start().await;
    let commit = github.commit(&FILES);
    let said = words(&read(&url, "ghp_another_canary", &commit, "db/migrations").await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("put in a new one"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test]
async fn limits_and_outages_are_waited_out_as_github_asks() {
    let github = Github::default();
    let url = github.start().await;
    let commit = github.commit(&FILES);
    let limits = [
        (StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "7")], Some(7)),
        (StatusCode::FORBIDDEN, vec![("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "90")], Some(90)),
        (StatusCode::FORBIDDEN, vec![("retry-after", "3")], Some(3)),
        (StatusCode::BAD_GATEWAY, Vec::new(), None),
    ];
    for (status, headers, seconds) in limits {
        github.answer_first(status, &headers);
        let failure = read(&url, TOKEN, &commit, "db/migrations").await.unwrap_err();
        let Failure::Retry { after, .. } = failure else { panic!("{}", words(&failure)) };
        assert_eq!(after, seconds.map(Duration::from_secs));
    }
    github.answer_first(StatusCode::FORBIDDEN, &[("x-ratelimit-remaining", "10")]);
    let said = words(&read(&url, TOKEN, &commit, "db/migrations").await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("may not read"), "{said}");
}

#[tokio::test]
async fn only_commits_of_the_branch_may_be_applied() {
    let github = Github::default();
    let url = github.start().await;
    let (older, newest) = (github.commit(&FILES), github.commit(&FILES));
    let beside = github.commit_beside(&FILES);
    let http = worker::world::http_client();
    let repository = repository(&http, &url, TOKEN);
    repository.refuse_unless_reachable("main", &older).await.unwrap();
    repository.refuse_unless_reachable("main", &newest).await.unwrap();
    let said = words(&repository.refuse_unless_reachable("main", &beside).await.unwrap_err());
    assert!(said.starts_with("discard: ") && said.contains("is not on the branch `main`"), "{said}");
    let said = words(&repository.refuse_unless_reachable("feature/x", &newest).await.unwrap_err());
    assert!(said.contains("404") && said.contains("check"), "{said}");
}
