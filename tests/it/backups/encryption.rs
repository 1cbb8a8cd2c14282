//! Encrypted backups: stock programs open them, and a key that is missing or wrong is never taken for damage.

use secrets::SecretText;
use tests::backup_world::store_config;
use worker::WorldConfig;
use worker::backups::SealedFor;
use worker::stores::StoreConfig;

use super::*;

/// A key of `age-keygen`: the file's text and the recipient in it.
fn key() -> (String, String) {
    let made = std::process::Command::new("age-keygen").output().expect("tests/servers/install brings age");
    let text = String::from_utf8(made.stdout).unwrap();
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    (text, recipient)
}

/// A store `nightly` that encrypts for these, and stores `key0`, `key1`, ... at the same place, with these identities.
async fn world(database: &str, folder: &TempDir, recipients: &[&str], identities: &[&str]) -> BackupWorld {
    let sealed_for = |text: &&str| SealedFor::try_from((*text).to_owned()).unwrap();
    let encrypt_to: Vec<SealedFor> = recipients.iter().map(sealed_for).collect();
    let store = StoreConfig { encrypt_to, ..store_config(&directory(folder)) };
    let mut stores: std::collections::BTreeMap<String, StoreConfig> = [("nightly".to_owned(), store.clone())].into();
    for (index, identity) in identities.iter().enumerate() {
        let identity = Some(SecretText::parse(identity).unwrap());
        stores.insert(format!("key{index}"), StoreConfig { identity, ..store.clone() });
    }
    let databases = [("main".to_owned(), database_config(database))].into();
    BackupWorld::of(WorldConfig { databases, stores, ..WorldConfig::default() }).await
}

#[tokio::test]
async fn stock_programs_alone_restore_an_encrypted_backup_by_the_commands_in_its_manifest() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let ((text, recipient), (_, other)) = (key(), key());
    let world = world(&source, &folder, &[&other, &recipient], &[&text]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "key0"})).await;
    let listing = listed(&directory(&folder)).await;
    let manifest = &listing.backups[0].manifest;
    assert!(manifest.data.key.ends_with(".dump.zst.age"));
    assert_eq!(manifest.data.encryption.as_ref().unwrap().recipients, [other, recipient]);
    let copy = tests::postgres::fresh_database().await;
    restore_by_hand(&folder, manifest, &source, &copy, &[("key.txt", &text)]);
    assert_eq!(fingerprint(&copy).await, fingerprint(&source).await);

    let args = json!({"backup": made["backup"], "database": "main", "store": "key0", "into": new_name()});
    world.complete("restore", &args).await;
    let restored = with_database(&source, args["into"].as_str().unwrap());
    assert_eq!(fingerprint(&restored).await, fingerprint(&source).await);
    let key = folder.path().join(listing.backups[0].key.clone());
    assert!(!std::fs::read_to_string(key).unwrap().contains("AGE-SECRET-KEY"));
    world.close().await;
}

#[tokio::test]
async fn a_porter_without_the_key_writes_backups_and_neither_it_nor_a_wrong_key_calls_them_damaged() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = sqlite(&folder, 1).await;
    let ((text, recipient), (wrong, _)) = (key(), key());
    let world = world(&source, &lake, &[&recipient], &[&text, &wrong]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let proven = async || listed(&directory(&lake)).await.marks(made["backup"].as_str().unwrap());
    for (store, said) in [("nightly", "give the store the `identity`"), ("key1", "no identity of the store opens it")] {
        let job = world.enqueue("verify", &json!({"database": "main", "store": store})).await;
        let ended = world.wait_for(job, &[JobState::Completed, JobState::Discarded, JobState::Retryable]).await;
        assert_eq!(ended.state, JobState::Discarded, "{:?}", ended.reason);
        assert!(ended.reason.as_ref().unwrap().contains(said), "{:?}", ended.reason);
        assert_eq!(proven().await, backups::Marks::default());
    }
    world.complete("verify", &json!({"database": "main", "store": "key0"})).await;
    assert!(proven().await.proven_at().is_some());

    // Without the key, what was stored is still read back and compared.
    let data = lake.path().join(made["key"].as_str().unwrap());
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let job = world.enqueue("verify", &json!({"database": "main", "store": "key0"})).await;
    assert_eq!(world.wait_for(job, &[JobState::Completed, JobState::Discarded]).await.state, JobState::Discarded);
    assert!(proven().await.disproved());
    world.close().await;
}

#[tokio::test]
async fn what_a_store_did_not_keep_as_it_was_sent_is_found_without_the_key_too() {
    let (folder, bucket) = (TempDir::new().unwrap(), Bucket::on_server().await);
    let source = sqlite(&folder, 1).await;
    let altered = |method: &Method, target: &str| {
        if method == Method::PUT && target.contains(".dump.zst.age") { Passage::Altered } else { Passage::Free }
    };
    let door = Door::before(&bucket.endpoint, altered).await;
    let through = bucket.store_url_through(&door.endpoint);
    let sealed_for = SealedFor::try_from(key().1).unwrap();
    let store = StoreConfig { encrypt_to: vec![sealed_for], ..store_config(&through) };
    let databases = [("main".to_owned(), database_config(&source))].into();
    let stores = [("nightly".to_owned(), store)].into();
    let world = BackupWorld::of(WorldConfig { databases, stores, ..WorldConfig::default() }).await;
    let job = world.enqueue("backup", &json!({"database": "main", "store": "nightly"})).await;
    assert!(world.first_failure(job).await.contains("not what was sent"));
    assert!(listed(&bucket.store_url()).await.backups.is_empty());
    world.close().await;
}
