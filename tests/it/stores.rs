//! The stores' contract: one suite, every store.

use std::time::Duration;

use axum::body::Bytes;
use chrono::Utc;
use tests::backup_world::store_config;
use tests::s3::Bucket;
use tokio::io::AsyncReadExt;
use worker::Failure;
use worker::stores::{Put, Store};

/// More than one part of an upload, and not a multiple of it.
const LARGE: usize = 33 * 1024 * 1024 + 17;

const YEAR: u64 = 365 * 24 * 60 * 60;

/// A store, and what must outlive it.
struct Case {
    store: Box<dyn Store>,
    _bucket: Option<Bucket>,
    _folder: Option<tempfile::TempDir>,
    /// s3s-fs can't list unfinished uploads.
    lists_uploads: bool,
}

impl Case {
    async fn directory() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("file:{}", folder.path().join("store").display())).await;
        Self { store, _bucket: None, _folder: Some(folder), lists_uploads: true }
    }

    async fn s3() -> Self {
        let bucket = Bucket::on_server().await;
        Self { store: open(&bucket.store_url()).await, _bucket: Some(bucket), _folder: None, lists_uploads: true }
    }

    async fn s3_in_process() -> Self {
        let bucket = Bucket::in_process().await;
        Self { store: open(&bucket.store_url()).await, _bucket: Some(bucket), _folder: None, lists_uploads: false }
    }
}

/// Runs each check on each store.
macro_rules! on_every_store {
    ($($check:ident),* $(,)?) => {
        mod directory {
            $(#[tokio::test] async fn $check() { super::$check(super::Case::directory().await).await; })*
        }
        mod s3 {
            $(#[tokio::test] async fn $check() { super::$check(super::Case::s3().await).await; })*
        }
        mod s3_in_process {
            $(#[tokio::test] async fn $check() { super::$check(super::Case::s3_in_process().await).await; })*
        }
    };
}

on_every_store![
    what_was_put_is_read_and_listed,
    nothing_is_ever_overwritten,
    a_large_upload_is_invisible_until_it_is_finished,
    a_finished_upload_never_overwrites,
    an_aborted_upload_leaves_nothing,
    an_upload_that_was_left_behind_is_swept_when_it_is_old_enough,
    what_was_deleted_is_gone,
    an_empty_object_is_an_object,
];

async fn what_was_put_is_read_and_listed(case: Case) {
    for key in ["a/x.json", "a/b/y", "ab/z"] {
        assert_eq!(right(case.store.put_if_absent(key, Bytes::from(key)).await), Put::Written);
    }
    assert_eq!(read(&*case.store, "a/b/y").await.as_deref(), Some(&b"a/b/y"[..]));
    assert_eq!(read(&*case.store, "a/b").await, None);
    assert!(right(case.store.head("nothing").await).is_none());
    let found = right(case.store.head("a/x.json").await).unwrap();
    assert_eq!((found.key.as_str(), found.bytes), ("a/x.json", 8));
    assert!((Utc::now() - found.modified).abs() < chrono::TimeDelta::minutes(5));
    assert_eq!(keys(&*case.store, "a/").await, ["a/b/y", "a/x.json"]);
    assert_eq!(keys(&*case.store, "a").await, ["a/b/y", "a/x.json", "ab/z"]);
    assert_eq!(keys(&*case.store, "").await.len(), 3);
    assert!(case.store.put_if_absent("a/../../x", Bytes::new()).await.is_err());
}

async fn nothing_is_ever_overwritten(case: Case) {
    assert_eq!(right(case.store.put_if_absent("k", Bytes::from("first")).await), Put::Written);
    assert_eq!(right(case.store.put_if_absent("k", Bytes::from("second")).await), Put::AlreadyThere);
    assert_eq!(read(&*case.store, "k").await.as_deref(), Some(&b"first"[..]));
}

async fn a_large_upload_is_invisible_until_it_is_finished(case: Case) {
    let bytes = large();
    let mut upload = right(case.store.begin("big/one", LARGE as u64).await);
    for piece in bytes.chunks(5_000_000) {
        right(upload.write(bytes.slice_ref(piece)).await);
    }
    assert!(right(case.store.head("big/one").await).is_none());
    assert!(keys(&*case.store, "").await.is_empty());
    // Some versions of moto answer in a way that the SDK does not understand; the object is there all the same.
    right(upload.finish().await);
    assert_eq!(keys(&*case.store, "").await, ["big/one"]);
    assert!(read(&*case.store, "big/one").await.unwrap() == bytes, "the bytes came back");
}

async fn a_finished_upload_never_overwrites(case: Case) {
    right(case.store.put_if_absent("k", Bytes::from("first")).await);
    for bytes in [Bytes::from("second"), large()] {
        let mut upload = right(case.store.begin("k", 0).await);
        right(upload.write(bytes).await);
        assert_eq!(right(upload.finish().await), Put::AlreadyThere);
    }
    assert_eq!(read(&*case.store, "k").await.as_deref(), Some(&b"first"[..]));
}

async fn an_aborted_upload_leaves_nothing(case: Case) {
    let mut upload = right(case.store.begin("k", 0).await);
    right(upload.write(large()).await);
    upload.abort().await;
    assert!(keys(&*case.store, "").await.is_empty());
    if case.lists_uploads {
        assert_eq!(right(case.store.sweep_uploads("", Duration::ZERO, Utc::now()).await), 0);
    }
}

async fn an_upload_that_was_left_behind_is_swept_when_it_is_old_enough(case: Case) {
    if !case.lists_uploads {
        let refused = case.store.sweep_uploads("", Duration::ZERO, Utc::now()).await;
        assert!(refused.is_err(), "a store that can't be swept says so");
        return;
    }
    let mut mine = right(case.store.begin("mine/k", 0).await);
    right(mine.write(large()).await);
    let mut other = right(case.store.begin("other/k", 0).await);
    right(other.write(large()).await);
    // As a killed process would, without its last words.
    std::mem::forget((mine, other));
    // Years, because moto says of every upload that it began in 2010.
    let (age, later) = (Duration::from_secs(50 * YEAR), Utc::now() + Duration::from_secs(51 * YEAR));
    assert_eq!(right(case.store.sweep_uploads("mine/", age, Utc::now()).await), 0);
    assert_eq!(right(case.store.sweep_uploads("mine/", age, later).await), 1);
    assert_eq!(right(case.store.sweep_uploads("", age, later).await), 1);
    assert!(keys(&*case.store, "").await.is_empty());
}

async fn what_was_deleted_is_gone(case: Case) {
    right(case.store.put_if_absent("a/1", Bytes::from("1")).await);
    right(case.store.put_if_absent("a/2", Bytes::from("2")).await);
    right(case.store.delete(&["a/1".to_owned(), "a/never".to_owned()]).await);
    assert_eq!(keys(&*case.store, "").await, ["a/2"]);
    assert_eq!(right(case.store.put_if_absent("a/1", Bytes::from("again")).await), Put::Written);
}

async fn an_empty_object_is_an_object(case: Case) {
    let upload = right(case.store.begin("empty", 0).await);
    assert_eq!(right(upload.finish().await), Put::Written);
    assert_eq!(read(&*case.store, "empty").await.as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn a_list_has_all_pages() {
    let bucket = Bucket::on_server().await;
    let store = open(&bucket.store_url()).await;
    for number in 0..1_050 {
        right(store.put_if_absent(&format!("many/{number:04}"), Bytes::new()).await);
    }
    assert_eq!(keys(&*store, "many/").await.len(), 1_050);
}

#[tokio::test]
async fn data_gets_the_storage_class_and_small_objects_do_not() {
    let bucket = Bucket::on_server().await;
    let store = open(&format!("{}&storage_class=STANDARD_IA", bucket.store_url())).await;
    for bytes in [Bytes::from("small"), large()] {
        let mut upload = right(store.begin(&format!("data{}", bytes.len()), 0).await);
        right(upload.write(bytes).await);
        right(upload.finish().await);
    }
    right(store.put_if_absent("manifest", Bytes::from("{}")).await);
    let class = async |key: &str| {
        let url = format!("{}/{}/a/prefix/{key}", bucket.endpoint, bucket.name);
        // moto tells nothing to strangers, and believes everyone who gives a name.
        let name = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";
        let head = tests::backup_world::http().head(url).header("authorization", name).send().await.unwrap();
        assert!(head.status().is_success(), "{key}: {}", head.status());
        head.headers().get("x-amz-storage-class").map(|class| class.to_str().unwrap().to_owned())
    };
    assert_eq!(class("data5").await.as_deref(), Some("STANDARD_IA"));
    assert_eq!(class(&format!("data{LARGE}")).await.as_deref(), Some("STANDARD_IA"));
    assert_ne!(class("manifest").await.as_deref(), Some("STANDARD_IA"));
}

async fn open(url: &str) -> Box<dyn Store> {
    right(worker::stores::open("test", &store_config(url), &secrets::Resolver::default()).await)
}

async fn read(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    // In a folder, a name that is a folder's is no object's.
    let mut body = store.get(key).await.ok().flatten()?;
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).await.ok()?;
    Some(bytes)
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    right(store.list(prefix).await).into_iter().map(|object| object.key).collect()
}

fn large() -> Bytes {
    (0..LARGE).map(|index| u8::try_from((index / 4096 + index) % 251).unwrap()).collect()
}

fn right<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.words()))
}
