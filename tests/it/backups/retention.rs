//! Retention of backups in real stores: what a dry run says is what goes, whatever kills it on the way.

use chrono::{Duration as Span, Utc};
use schemas::JobId;
use tests::backup_world::store_config;
use worker::WorldConfig;
use worker::backups::keep::Keep;
use worker::backups::marks::{self, Pin};

use super::*;

/// A store with a backup for each of these ages, in hours; the youngest are the world's own.
struct Shelf {
    world: BackupWorld,
    store: Box<dyn Store>,
    url: String,
    folder: TempDir,
}

impl Shelf {
    /// `through` is the address by which jobs reach the store.
    async fn with(ages: &[i64], url: &str, through: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let app = sqlite(&folder, 0).await;
        let keep: Keep =
            serde_json::from_value(json!({"daily": "3d", "weekly": "3w", "at_least_verified": 1})).unwrap();
        let stores = ["nightly", "door"].map(|name| {
            let url = if name == "door" { through } else { url };
            (name.to_owned(), worker::stores::StoreConfig { keep: Some(keep.clone()), ..store_config(url) })
        });
        let databases = [("app".to_owned(), database_config(&app))].into();
        let config = WorldConfig { databases, stores: stores.into(), ..WorldConfig::default() };
        let world = BackupWorld::of(config).await;
        world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
        let shelf = Self { world, store: open_store(url).await, url: url.to_owned(), folder };
        for age in ages {
            shelf.plant(*age).await;
        }
        shelf
    }

    /// Another backup, made so many hours ago, of the same bytes; its key.
    async fn plant(&self, hours: i64) -> String {
        let newest = right(backups::latest(&*self.store, "app").await);
        let at = Utc::now() - Span::hours(hours);
        let stem = format!("app/{}-{}", at.format("%Y/%m/%Y%m%dT%H%M%SZ"), JobId::at(at));
        let bytes = right(stores::read_small(&*self.store, &newest.manifest.data.key, 1 << 20).await).unwrap();
        let mut manifest = newest.manifest;
        (manifest.started_at, manifest.data.key) = (at, format!("{stem}.1.dump.zst"));
        right(self.store.put_if_absent(&manifest.data.key, bytes.into()).await);
        let key = format!("{stem}.manifest.json");
        right(self.store.put_if_absent(&key, serde_json::to_vec(&manifest).unwrap().into()).await);
        key
    }

    async fn keys(&self) -> Vec<String> {
        listed(&self.url).await.backups.into_iter().map(|backup| backup.key).collect()
    }

    async fn run(&self, dry_run: bool) -> Value {
        self.world.complete("retention", &json!({"of": "backups", "store": "nightly", "dry_run": dry_run})).await
    }

    /// That each object in the store belongs to a backup that is whole.
    async fn nothing_is_left_over(&self) {
        let whole = self.keys().await;
        for object in right(self.store.list("").await) {
            let of_one = |key: &String| object.key.starts_with(key.strip_suffix("manifest.json").unwrap());
            assert!(whole.iter().any(of_one), "{} belongs to no backup", object.key);
        }
    }
}

/// Two of a day, three of a week that are older than the days are kept, some older than all.
const AGES: [i64; 9] = [25, 26, 24 * 5, 24 * 5 + 1, 24 * 12, 24 * 12 + 1, 24 * 30, 24 * 40, 24 * 50];

#[tokio::test]
async fn a_dry_run_deletes_nothing_and_says_exactly_what_the_run_deletes() {
    let folder = TempDir::new().unwrap();
    let shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let before = shelf.keys().await;
    right(marks::pin(&*shelf.store, &before[0], &pin()).await);
    let said = shelf.run(true).await;
    assert_eq!(shelf.keys().await, before);
    let deleted: Vec<String> = serde_json::from_value(said["keys"].clone()).unwrap();
    assert!(deleted.len() >= 4 && !deleted.contains(&before[0]), "{deleted:?}");
    let done = shelf.run(false).await;
    assert_eq!((&done["keys"], &done["deleted"]), (&said["keys"], &json!(deleted.len())));
    let wanted: Vec<String> = before.into_iter().filter(|key| !deleted.contains(key)).collect();
    assert_eq!(shelf.keys().await, wanted);
    shelf.nothing_is_left_over().await;
    assert_eq!(shelf.run(false).await["deleted"], json!(0), "twice is once");
    // Unpinned, it is as old as it is.
    assert!(right(marks::unpin(&*shelf.store, &wanted[0]).await));
    assert_eq!(shelf.run(false).await["keys"], json!([wanted[0]]));
    shelf.world.close().await;
}

fn pin() -> Pin {
    Pin { at: Utc::now(), by: "ada".into(), reason: "law".into() }
}

#[tokio::test]
async fn what_is_pinned_after_it_was_decided_about_is_not_deleted() {
    let bucket = Bucket::on_server().await;
    // The last look for a pin comes before this.
    let held = |method: &Method, target: &str| held_if(method == Method::DELETE && target.contains("manifest.json"));
    let mut door = Door::before(&bucket.endpoint, held).await;
    let through = bucket.store_url_through(&door.endpoint);
    let shelf = Shelf::with(&AGES, &bucket.store_url(), &through).await;
    let wanted: Vec<String> = serde_json::from_value(shelf.run(true).await["keys"].clone()).unwrap();
    right(marks::pin(&*shelf.store, &wanted[1], &pin()).await);
    right(backups::delete(&*shelf.store, &wanted[1]).await);
    assert!(shelf.keys().await.contains(&wanted[1]), "it was pinned");
    right(marks::unpin(&*shelf.store, &wanted[1]).await);

    let job = shelf.world.enqueue("retention", &json!({"of": "backups", "store": "door"})).await;
    door.holds().await;
    assert!(right(marks::pin(&*shelf.store, &wanted[0], &pin()).await), "it is still there, and now pinned");
    door.open();
    shelf.world.completed(job).await;
    let left = shelf.keys().await;
    assert!(left.contains(&wanted[0]), "whoever pinned it was told that it is kept");
    assert!(!left.contains(&wanted[1]));
    shelf.world.close().await;
}

/// Whoever deletes it looks for a pin once more when the manifest is gone.
#[tokio::test]
async fn a_pinned_backup_whose_deletion_was_killed_before_its_last_look_has_its_manifest_back() {
    let folder = TempDir::new().unwrap();
    let shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let keys = shelf.keys().await;
    let (whole, without_data) = (&keys[0], &keys[1]);
    let before = right(backups::find(&*shelf.store, whole).await).unwrap().manifest;
    for key in [whole, without_data] {
        right(marks::pin(&*shelf.store, key, &pin()).await);
        right(shelf.store.delete(std::slice::from_ref(key)).await);
    }
    right(shelf.store.delete(&[without_data.replace(".manifest.json", ".1.dump.zst")]).await);
    shelf.run(false).await;
    let back = right(backups::find(&*shelf.store, whole).await).expect("it was pinned").manifest;
    assert_eq!(json!(back), json!(before));
    assert!(right(backups::find(&*shelf.store, without_data).await).is_none(), "a manifest never outlives its data");
    assert_eq!(right(marks::pinned(&*shelf.store, whole).await).map(|pin| pin.by), Some("ada".to_owned()));
    shelf.run(false).await;
    assert!(shelf.keys().await.contains(whole), "and it stays");
    shelf.world.close().await;
}

#[tokio::test]
async fn a_run_that_finds_its_deletions_done_says_what_it_deleted_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let mut shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let before = shelf.keys().await;
    shelf.world.stop_worker().await;
    let args = json!({"of": "backups", "store": "nightly"});
    let done = json!({"deleted": 1, "keys": ["app/an-older-one.manifest.json"]});
    let job = shelf.world.die_after("retention", &args, &[("delete", Some(done))]).await;
    shelf.world.start_worker();
    let said = shelf.world.completed(job).await;
    assert_eq!(shelf.keys().await, before, "what has become old meanwhile is the next run's");
    assert_eq!((&said["deleted"], &said["keys"]), (&json!(1), &json!(["app/an-older-one.manifest.json"])));
    shelf.world.close().await;
}

#[tokio::test]
async fn after_a_backup_that_failed_nothing_is_deleted_until_one_succeeds() {
    let folder = TempDir::new().unwrap();
    let shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let source = shelf.folder.path().join("app.db");
    let bytes = std::fs::read(&source).unwrap();
    std::fs::write(&source, "no database").unwrap();
    let failing = shelf.world.enqueue("backup", &json!({"database": "app", "store": "nightly"})).await;
    shelf.world.wait_for(failing, &[JobState::Retryable, JobState::Discarded]).await;
    let held = shelf.run(false).await;
    assert_eq!(held["deleted"], json!(0));
    assert!(held["held"]["app"].as_str().unwrap().contains("its last backup failed"), "{held}");
    std::fs::write(&source, bytes).unwrap();
    shelf.world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    let done = shelf.run(false).await;
    assert!(done["deleted"].as_u64().unwrap() > 0 && done["held"] == json!({}), "{done}");
    shelf.world.close().await;
}

#[tokio::test]
async fn nothing_is_deleted_while_the_newest_manifest_cannot_be_read_and_such_a_one_never_is() {
    let folder = TempDir::new().unwrap();
    let shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let old = "app/2020/01/20200101T000000Z-x.manifest.json";
    right(shelf.store.put_if_absent(old, b"{\"version\": 99}".to_vec().into()).await);
    let new = "app/2099/01/20990101T000000Z-x.manifest.json";
    right(shelf.store.put_if_absent(new, b"{".to_vec().into()).await);
    let held = shelf.run(false).await;
    assert!(held["held"]["app"].as_str().unwrap().contains("cannot be used") && held["deleted"] == json!(0), "{held}");
    right(shelf.store.delete(&[new.to_owned()]).await);
    assert!(shelf.run(false).await["deleted"].as_u64().unwrap() > 0);
    assert!(right(shelf.store.head(old).await).is_some());
    shelf.world.close().await;
}

#[tokio::test]
async fn a_run_killed_before_or_after_a_manifest_is_deleted_is_finished_by_the_next_attempt() {
    let rules: [fn(&Method, &str) -> Passage; 2] = [
        |method, target| held_if(method == Method::DELETE && target.contains("manifest.json")),
        |method, target| held_if(method == Method::DELETE && target.contains(".dump.zst")),
    ];
    for held in rules {
        let bucket = Bucket::on_server().await;
        let mut door = Door::before(&bucket.endpoint, held).await;
        let through = bucket.store_url_through(&door.endpoint);
        let mut shelf = Shelf::with(&AGES, &bucket.store_url(), &through).await;
        let wanted: Vec<String> = serde_json::from_value(shelf.run(true).await["keys"].clone()).unwrap();
        let before = shelf.keys().await;
        let job = shelf.world.enqueue("retention", &json!({"of": "backups", "store": "door"})).await;
        door.holds().await;
        shelf.world.stop_worker().await;
        door.open();
        shelf.world.start_worker();
        shelf.world.completed(job).await;
        let left: Vec<String> = before.into_iter().filter(|key| !wanted.contains(key)).collect();
        assert_eq!(shelf.keys().await, left);
        assert_eq!(listed(&shelf.url).await.broken.len(), 0, "a manifest never outlives its data");
        shelf.world.close().await;
    }
}

#[tokio::test]
async fn what_a_killed_run_left_without_a_manifest_is_swept_by_the_next() {
    let folder = TempDir::new().unwrap();
    let shelf = Shelf::with(&AGES, &directory(&folder), &directory(&folder)).await;
    let half = shelf.keys().await[0].clone();
    // As it is when a run dies right after the manifest.
    right(shelf.store.delete(std::slice::from_ref(&half)).await);
    let data = folder.path().join(half.replace(".manifest.json", ".1.dump.zst"));
    let old = std::time::SystemTime::now() - Duration::from_hours(48);
    std::fs::File::options().write(true).open(&data).unwrap().set_modified(old).unwrap();
    shelf.run(true).await;
    assert!(data.exists(), "a dry run changes nothing");
    shelf.run(false).await;
    assert!(!data.exists());
    shelf.nothing_is_left_over().await;
    shelf.world.close().await;
}
