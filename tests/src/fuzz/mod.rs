//! Fuzzing: properties that hold for whatever bytes come.
//!
//! A target is a function of bytes that panics where its property does not hold. Here it is driven on stable Rust, in
//! `cargo test`: a mutator over a corpus, with a fixed seed, so that a run says the same tomorrow. CONTRIBUTING.md says how to
//! go on for longer, with a fresh seed, which is printed.

pub mod conditions;
pub mod jobs;
mod mutator;
pub mod sources;
pub mod templates;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mutator::Mutator;

/// The seed of every run; the long mode takes a fresh one as well.
const FIXED_SEED: u64 = 0x6e69_6768_7470;

/// The stack of the threads that this runs on in production.
const STACK: usize = 2 * 1024 * 1024;

/// How long the long mode goes on with each seed.
const LONG: Duration = Duration::from_mins(5);

/// What the mutator starts from, and what it puts in.
pub struct Corpus {
    /// Inputs that make sense.
    pub seeds: Vec<Vec<u8>>,
    /// Words that mean something to the target.
    pub words: &'static [&'static str],
    /// What opens and what closes something that may be nested.
    pub pairs: &'static [(&'static str, &'static str)],
}

/// Runs a target over its corpus as it is, and over `inputs` mutations of it; in the long mode, minutes of the fixed seed and
/// of a fresh one. Prints how many.
///
/// # Panics
///
/// Where the target does, with the seed and the input, which is left in a file.
pub fn run(name: &str, corpus: &Corpus, inputs: u32, target: fn(&[u8])) {
    let asked = std::env::var("NIGHTPORTER_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let fresh = || crate::is_long().then(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    let seeds: Vec<u64> = [FIXED_SEED].into_iter().chain(asked.or_else(fresh)).collect();
    corpus.seeds.iter().for_each(|seed| checked(name, "of the corpus", seed, target));
    let mut count = corpus.seeds.len();
    for &seed in &seeds {
        // A stack that overflows takes the process with it, and says only the thread's name; the input is in its file.
        let thread = std::thread::Builder::new().name(format!("fuzzing {name}, seed {seed}")).stack_size(STACK);
        let did = std::thread::scope(|scope| {
            let go = move || {
                let (start, mut mutator, mut did) = (Instant::now(), Mutator::new(corpus, seed), 0);
                while if crate::is_long() { start.elapsed() < LONG } else { did < inputs } {
                    checked(name, &format!("{did} of seed {seed}"), &mutator.next_input(), target);
                    did += 1;
                }
                did
            };
            thread.spawn_scoped(scope, go).expect("a thread").join()
        });
        count += did.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) as usize;
    }
    println!("{name}: {count} inputs, seeds {seeds:?}");
}

/// Some inputs of the fixed seed, for tests that look at what becomes of many.
pub fn inputs(corpus: &Corpus, count: u32) -> Vec<Vec<u8>> {
    let mut mutator = Mutator::new(corpus, FIXED_SEED);
    corpus.seeds.iter().cloned().chain((0..count).map(|_| mutator.next_input())).collect()
}

/// The input is in a file first: a stack that overflows leaves nothing else behind.
fn checked(name: &str, which: &str, input: &[u8], target: fn(&[u8])) {
    let file = std::env::temp_dir().join(format!("nightporter-fuzz-{name}-{}", std::process::id()));
    std::fs::write(&file, input).expect("a file for the input");
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let start = String::from_utf8_lossy(&input[..input.len().min(500)]).into_owned();
        eprintln!("{name}: input {which} is in {}; keep it in tests/fixtures/fuzz/{name}/: {start:?}", file.display());
        std::panic::resume_unwind(panic);
    }
}

/// The hand-written seeds of a target, and what was found before: `tests/fixtures/fuzz/<name>/`.
///
/// # Panics
///
/// Where there are none.
pub fn kept_seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fuzz")).join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("a file that can be read")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_delivery_is_believed_unless_it_is_signed_and_what_is_read_of_it_can_be_kept() {
        run("source", &sources::corpus(), 2_000, sources::source);
    }

    #[test]
    fn conditions_that_are_checked_find_the_fields_that_they_name_within_bounds() {
        run("condition", &conditions::corpus(), 2_000, conditions::condition);
    }

    #[test]
    fn templates_that_are_checked_find_the_fields_that_they_name_within_bounds() {
        run("template", &templates::corpus(), 2_000, templates::template);
    }

    #[test]
    fn arguments_that_are_checked_are_read_by_the_worker_and_bells_stay_what_they_are() {
        run("job", &jobs::corpus(), 2_000, jobs::job);
    }

    #[test]
    #[should_panic(expected = "as asked")]
    fn a_target_that_panics_fails_the_run() {
        let corpus = Corpus { seeds: vec![b"a".to_vec()], words: &["needle"], pairs: &[] };
        run("needle", &corpus, 2_000, |input| {
            assert!(!input.windows(6).any(|window| window == b"needle"), "as asked");
        });
    }
}
