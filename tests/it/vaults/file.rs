//! What only a vault in a file has: its disk, its lock, its keys; and the commands that make one.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use secrets::ExposeSecret;
use secrets::vaults::{Label, Vault, VaultError};
use tests::binary::House;
use tests::vaults::{TestVault, token};

#[tokio::test]
async fn of_many_writers_one_wins_and_nobody_loses_what_was_written() {
    let t = TestVault::file().await;
    let file = t.file.as_ref().unwrap();
    let (contested, _) = t.secret("one").await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..12 {
        let (vault, contested) = (file.open(), contested.clone());
        writers.spawn(async move {
            let own = format!("np/of-writer-{number}");
            vault.create(&own, &token(), &"own".into()).await.expect("nobody else writes that one");
            vault.put_pending(&contested, &token(), &format!("of {number}").into()).await.is_ok()
        });
    }
    let won = writers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!((won, t.vault.list().await.unwrap().len()), (1, 13));
}

#[tokio::test]
async fn a_writer_that_was_killed_leaves_the_old_state_and_nobody_waits_for_it() {
    let t = TestVault::file().await;
    let file = t.file.as_ref().unwrap();
    let (name, first) = t.secret("one").await;
    // As it is left by one that was killed before the rename: half a file beside the whole one, and a lock that nobody holds.
    std::fs::write(file.path().with_extension("age.partial"), "age-encryption.org/v1\nhalf").unwrap();
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    t.vault.promote(&name, &second, &first).await.unwrap();
    assert_eq!(t.vault.current(&name).await.unwrap().expose_secret(), "two");
    assert!(!file.path().with_extension("age.partial").exists());
}

#[tokio::test]
async fn the_file_shows_nothing_and_the_second_key_opens_it_with_stock_programs() {
    let t = TestVault::file().await;
    let file = t.file.as_ref().unwrap();
    let (name, _) = t.secret("a-canary-value").await;
    let bytes = std::fs::read(file.path()).unwrap();
    let shows = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!shows("canary") && !shows(&name) && shows("age-encryption.org/v1"));
    assert_eq!(std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    for key in [file.key(), file.second_key()] {
        let opened = Command::new("age").arg("--decrypt").arg("-i").arg(key).arg(file.path()).output();
        let opened = opened.expect("tests/servers/install brings age");
        assert!(String::from_utf8_lossy(&opened.stdout).contains("a-canary-value"));
    }
}

#[tokio::test]
async fn a_vault_that_only_this_machine_could_open_is_not_written_and_a_wrong_key_is_told() {
    let t = TestVault::file().await;
    let file = t.file.as_ref().unwrap();
    let (name, _) = t.secret("one").await;
    let alone = file.open_for(&file.recipients[..1]);
    let refused = alone.put_pending(&name, &token(), &"two".into()).await.unwrap_err().to_string();
    assert!(refused.contains("no second copy"), "{refused}");
    assert!(alone.examine().await.is_err() && file.open().examine().await.is_ok());
    let locked_out = file.open_for(&[file.recipients[1].clone(), secrets::vaults::new_key().1]);
    assert!(
        locked_out.put_pending(&name, &token(), &"two".into()).await.unwrap_err().to_string().contains("opens nothing")
    );
    assert_eq!(t.vault.describe(&name).await.unwrap().holder(Label::Pending), None);

    std::fs::write(file.key(), secrets::vaults::new_key().0.expose_secret()).unwrap();
    let wrong = t.vault.current(&name).await.unwrap_err();
    assert!(matches!(&wrong, VaultError::Refused(why) if why.contains("written for others")), "{wrong}");
    std::fs::write(file.path(), "no vault").unwrap();
    assert!(matches!(t.vault.current(&name).await, Err(VaultError::Refused(_))));
}

#[tokio::test]
async fn a_lock_that_another_process_holds_is_waited_for_and_then_told() {
    let t = TestVault::file().await;
    let file = t.file.as_ref().unwrap();
    let (name, _) = t.secret("one").await;
    let lock = File::open(file.path().with_extension("age.lock")).unwrap();
    lock.lock().unwrap();
    let blocked = tokio::spawn({
        let (vault, name) = (file.open(), name.clone());
        async move { vault.put_pending(&name, &token(), &"two".into()).await }
    });
    assert_eq!(t.vault.current(&name).await.unwrap().expose_secret(), "one", "readers need no lock");
    let away = blocked.await.unwrap().unwrap_err();
    assert!(matches!(&away, VaultError::Unavailable(why) if why.contains("holds")), "{away}");
    lock.unlock().unwrap();
    t.vault.put_pending(&name, &token(), &"two".into()).await.unwrap();
}

/// Runs a command with something on its standard input; what it put out.
fn fed(house: &House, arguments: &[&str], input: &str) -> (i32, String, String) {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = house.command(arguments);
    let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code().unwrap(), text(ended.stdout), text(ended.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_make_a_vault_put_secrets_into_it_and_never_show_one() {
    let house = House::new("");
    let recipient = |name: &str| house.run(&["secrets", "key", name]).exits(0).stdout.trim().to_owned();
    let recipients = [recipient("vault.key"), recipient("second.key")];
    house.run(&["secrets", "key", "vault.key"]).exits(1);
    let config = |recipients: &[String]| {
        let vault = format!(
            "[vault]\nurl = \"file:np.age\"\nidentity = \"${{file:vault.key}}\"\nrecipients = {recipients:?}\n"
        );
        std::fs::write(house.path("nightporter.toml"), vault).unwrap();
    };
    config(&recipients[..1]);
    let checked = house.run(&["check"]).exits(2);
    assert!(
        checked.stdout.contains("nightporter.toml:4:14: error: vault.recipients: its key has no second copy"),
        "{}",
        checked.stdout
    );
    config(&recipients);
    house.run(&["check"]).exits(0);
    assert!(house.run(&["secrets", "list"]).exits(1).stderr.contains("`nightporter secrets init` makes it"));
    house.run(&["secrets", "init"]).exits(0);
    house.run(&["secrets", "init"]).exits(5);

    assert_eq!(fed(&house, &["secrets", "put", "app/db", "--field", "url", "--dry-run"], "x").0, 0);
    house.run(&["secrets", "show", "app/db"]).exits(3);
    let canary = "a-canary-value";
    let mut said = String::new();
    for (field, value) in [("url", canary), ("port", "5432\n"), ("url", &format!("{canary}-2"))] {
        let (code, stdout, stderr) = fed(&house, &["secrets", "put", "app/db", "--field", field], value);
        assert_eq!(code, 0, "{stderr}");
        said += &(stdout + &stderr);
    }
    assert_eq!(fed(&house, &["secrets", "put", "empty"], "\n").0, 2);
    let shown = house.run(&["secrets", "show", "app/db", "--json"]).exits(0);
    said += &(shown.stdout.clone() + &house.run(&["secrets", "list"]).exits(0).stdout);
    assert!(!said.contains(canary), "{said}");
    assert_eq!(shown.json()["versions"].as_object().unwrap().len(), 2);
    let opened = Command::new("age").args(["-d", "-i", "second.key", "np.age"]).current_dir(house.path("")).output();
    let opened = String::from_utf8(opened.unwrap().stdout).unwrap();
    assert!(opened.contains(r#"{\"port\":\"5432\",\"url\":\"a-canary-value-2\"}"#), "{opened}");
    house.run(&["secrets", "drop-pending", "app/db", token().as_str()]).exits(5);
}
