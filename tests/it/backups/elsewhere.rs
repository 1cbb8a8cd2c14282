//! Backups are found, pinned, proven and restored by what lies in the store alone: the ledger that made them is lost.

use std::process::Command;

use tests::binary::{House, Site};

use super::*;

fn configuration(lake: &TempDir) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
[databases.main]
url = "sqlite:app.db"
[stores.nightly]
url = "{}"
"#,
        directory(lake)
    )
}

/// Runs statements in a file of the house, by the stock program; what it says.
fn stock(house: &House, file: &str, statements: &str) -> String {
    let ran = Command::new("sqlite3").arg(house.path(file)).arg(statements).output().expect("sqlite3 is installed");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

#[test]
fn without_the_ledger_that_made_them_backups_are_listed_shown_pinned_and_restored_by_their_manifests() {
    let lake = TempDir::new().unwrap();
    let lost = Site::open(&configuration(&lake));
    let with = ["run", "backup", "--with", "database=main", "--with", "store=nightly", "--reason", "x", "--wait"];
    for rows in ["create table t (a); insert into t values (1)", "insert into t values (2)"] {
        stock(&lost.house, "app.db", rows);
        lost.ask(&with).exits(0);
    }
    assert!(lost.up.stop().success());
    drop(lost.house);

    // Another machine, with the configuration and nothing else.
    let house = House::new(&configuration(&lake));
    let listed = || house.run(&["backups", "list", "--json"]).exits(0).json();
    let found = listed();
    let keys: Vec<&str> =
        found["backups"].as_array().unwrap().iter().map(|backup| backup["key"].as_str().unwrap()).collect();
    assert_eq!((keys.len(), &found["broken"]), (2, &json!([])), "{found}");
    let latest = ["backups", "show", "latest", "--database", "main", "--store", "nightly"];
    let shown = house.run(&[&latest[..], &["--json"]].concat()).exits(0).json();
    assert_eq!((shown["key"].as_str(), &shown["manifest"]["database"]), (Some(keys[1]), &json!("main")));
    let said = house.run(&latest).exits(0).stdout;
    assert!(said.contains("Restore it with stock programs"), "{said}");
    house.run(&["backups", "pin", keys[0], "--reason", "law"]).exits(0);
    assert_eq!(listed()["backups"][0]["pinned"], true);
    assert!(!house.path("book.db").exists(), "nobody asks a ledger");

    // With an empty ledger they are restored and proven as if it had made them.
    let site = Site { up: house.start("up"), house };
    stock(&site.house, "app.db", "create table t (a)");
    let of = ["latest", "--database", "main", "--store", "nightly", "--reason", "x"];
    site.ask(&[&["backups", "restore", "--into", "back.db"], &of[..]].concat()).exits(0);
    assert_eq!(stock(&site.house, "back.db", "select group_concat(a) from t"), "1,2");
    site.ask(&[&["backups", "verify"], &of[..]].concat()).exits(0);
    let proven = site.house.run(&["backups", "list", "--json"]).exits(0).json();
    assert_eq!(proven["backups"][1]["verdict"]["proven"], true, "{proven}");
}
