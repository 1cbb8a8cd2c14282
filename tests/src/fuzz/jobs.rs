//! What travels between processes: the arguments of each kind of job, and bells.

use std::sync::LazyLock;

use chrono::DateTime;
use queue::Bell;
use schemas::{Catalog, Names};
use serde_json::Value;
use worker::Registry;

use super::{Corpus, kept_seeds};

static REGISTRY: LazyLock<Registry> = LazyLock::new(worker::jobs::registry);

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let set = |name: &str| [name.to_owned()].into();
    REGISTRY.catalog(Names {
        databases: set("main"),
        stores: set("nightly"),
        channels: set("team"),
        credentials: set("app"),
        programs: set("reindex"),
        sources: set("github"),
        rotations: set("app"),
        runbooks: [("deploy".to_owned(), ["ref".to_owned()].into())].into(),
    })
});

/// In the first line a kind, then its arguments: what the makers of jobs take, workers read. And the whole as a bell.
pub fn job(data: &[u8]) {
    bell(data);
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(kind) = std::str::from_utf8(&data[..end]) else { return };
    let Ok(args) = serde_json::from_slice::<Value>(&data[end + 1..]) else { return };
    let now = DateTime::from_timestamp_secs(1_790_000_000).expect("a moment");
    let problems = CATALOG.check(kind, &args);
    let Ok(made) = CATALOG.job(kind, &args, now) else {
        assert!(!problems.is_empty(), "refused for no reason");
        return;
    };
    assert_eq!(problems, []);
    assert_eq!(
        serde_json::from_str::<Value>(made.args.get()).expect("JSON"),
        args,
        "the arguments are stored as they are"
    );
    let read = REGISTRY.read(kind, &made.args).expect("a worker reads what a maker of jobs takes");
    let again = CATALOG.job(kind, &read, now).expect("what a worker has read is taken too");
    assert_eq!(again.key, made.key, "the key of {args} and of {read}");
    assert_eq!(REGISTRY.read(kind, &again.args).expect("and read again"), read);
}

fn bell(data: &[u8]) {
    let Ok(bell) = serde_json::from_slice::<Bell>(data) else { return };
    let told = serde_json::to_vec(&bell).expect("JSON");
    assert_eq!(serde_json::from_slice::<Bell>(&told).expect("a bell"), bell);
}

/// What to begin with.
pub fn corpus() -> Corpus {
    Corpus {
        seeds: kept_seeds("job"),
        words: &[
            "backup\n",
            "exec\n",
            "github\n",
            "http\n",
            "maintain\n",
            "migrate\n",
            "noop\n",
            "notify\n",
            "plan\n",
            "restore\n",
            "sql\n",
            "\"database\":",
            "\"main\"",
            "\"store\":",
            "\"nightly\"",
            "\"channel\":",
            "\"team\"",
            "\"ref\":",
            "null",
            "true",
            "{}",
            "[]",
            "\"text\":",
            "\"queue\":",
            "\"count\":",
            "\"traceparent\":",
        ],
        pairs: &[("[", "]"), ("{\"a\":", "}"), ("\"", "\"")],
    }
}
