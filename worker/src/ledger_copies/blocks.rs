//! The blocks of a ledger's file: which of them differ from those of the copy before, and the file that they make.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

/// A page of the engine.
const BLOCK: usize = 4096;
/// Blocks are read so many at once.
const AT_ONCE: usize = 256;
/// In front of each block stands its number.
const NUMBER: usize = size_of::<u32>();

/// Enough of SHA-256 to tell blocks apart.
type Digest = [u8; 16];

/// What the blocks of a file are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    digests: Vec<Digest>,
}

/// What differs.
pub(super) enum Changed {
    /// These: each its number and its bytes.
    These(Vec<u8>),
    /// More than a part may hold.
    TooMuch,
}

/// Whence blocks are read.
pub(super) trait Source {
    /// How many bytes there are.
    fn bytes(&self) -> u64;
    /// Reads the bytes from here on, as many as there is room for.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for queue::ledger::Snapshot {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        Self::read_at(self, offset, into)
    }
}

/// A file that nobody changes.
pub(super) struct Still<'a>(pub(super) &'a File, pub(super) u64);

impl Source for Still<'_> {
    fn bytes(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}

impl Blocks {
    /// All of them in one digest.
    pub(super) fn root(&self) -> String {
        let mut root = Sha256::new();
        self.digests.iter().for_each(|digest| root.update(digest));
        hex::encode(root.finalize())
    }

    /// Reads a file through, gives its bytes to `each`, and says what its blocks are.
    pub(super) fn of(source: &dyn Source, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut digests = Vec::new();
        walk(source, |_, some| {
            digests.extend(some.chunks(BLOCK).map(digest));
            each(some)
        })?;
        Ok(Self { digests })
    }

    /// What differs in a file from these, and what its blocks are.
    pub(super) fn changed(&self, source: &dyn Source, most: usize) -> io::Result<(Changed, Self)> {
        let (mut digests, mut changed, mut too_much) = (Vec::with_capacity(self.digests.len()), Vec::new(), false);
        walk(source, |first, some| {
            for (number, block) in (first..).zip(some.chunks(BLOCK)) {
                let digest = digest(block);
                if self.digests.get(number as usize) != Some(&digest) {
                    changed.extend_from_slice(&number.to_be_bytes());
                    changed.extend_from_slice(block);
                    too_much |= changed.len() > most;
                    if too_much {
                        changed.clear();
                    }
                }
                digests.push(digest);
            }
            Ok(())
        })?;
        Ok((if too_much { Changed::TooMuch } else { Changed::These(changed) }, Self { digests }))
    }
}

/// Writes blocks into a file that is to have so many bytes then.
pub(super) fn apply(changed: &[u8], file: &File, bytes: u64) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "what changed is not whole blocks of the ledger");
    let mut rest = changed;
    while !rest.is_empty() {
        let (number, behind) = rest.split_first_chunk::<NUMBER>().ok_or_else(wrong)?;
        let offset = u64::from(u32::from_be_bytes(*number)) * BLOCK as u64;
        let length = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(BLOCK).min(BLOCK);
        let (block, after) = behind.split_at_checked(length).filter(|_| length > 0).ok_or_else(wrong)?;
        file.write_all_at(block, offset)?;
        rest = after;
    }
    file.set_len(bytes)
}

/// Reads a file, some blocks at once: the number of the first, and their bytes.
fn walk(source: &dyn Source, mut each: impl FnMut(u32, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK * AT_ONCE];
    let mut offset = 0;
    while offset < source.bytes() {
        let length = usize::try_from(source.bytes() - offset).unwrap_or(usize::MAX).min(buffer.len());
        source.read_at(offset, &mut buffer[..length])?;
        // 16 TiB are the most that SQLite has room for in pages of this size.
        let first = u32::try_from(offset / BLOCK as u64).map_err(io::Error::other)?;
        each(first, &buffer[..length])?;
        offset += length as u64;
    }
    Ok(())
}

fn digest(block: &[u8]) -> Digest {
    let whole: [u8; 32] = Sha256::digest(block).into();
    std::array::from_fn(|at| whole[at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Bytes(Vec<u8>);

    impl Source for Bytes {
        fn bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            let from = usize::try_from(offset).unwrap();
            into.copy_from_slice(&self.0[from..from + into.len()]);
            Ok(())
        }
    }

    /// A file whose blocks are of one byte each, and whose last one may be short.
    fn file(blocks: Vec<u8>, short: usize) -> Bytes {
        let mut bytes: Vec<u8> = blocks.into_iter().flat_map(|byte| [byte; BLOCK]).collect();
        bytes.truncate(bytes.len().saturating_sub(short));
        Bytes(bytes)
    }

    proptest! {
        #[test]
        fn what_changed_makes_of_the_old_file_the_new_one(
            old in prop::collection::vec(0_u8..4, 0..600),
            new in prop::collection::vec(0_u8..4, 0..600),
            short in 0_usize..BLOCK,
        ) {
            let (old, new) = (file(old, 0), file(new, short));
            let before = Blocks::of(&old, |_| Ok(())).unwrap();
            let (Changed::These(changed), blocks) = before.changed(&new, usize::MAX).unwrap() else { panic!("no bound") };
            let made = tempfile::tempfile().unwrap();
            made.write_all_at(&old.0, 0).unwrap();
            apply(&changed, &made, new.bytes()).unwrap();
            let mut found = vec![0; new.0.len()];
            made.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == new.0 && made.metadata().unwrap().len() == new.bytes());
            let still = Blocks::of(&Still(&made, new.bytes()), |_| Ok(())).unwrap();
            prop_assert_eq!(still.root(), blocks.root());
            let (Changed::These(nothing), same) = blocks.changed(&new, 0).unwrap() else { panic!("nothing changed") };
            prop_assert!(nothing.is_empty() && same == blocks);
        }
    }

    #[test]
    fn more_than_a_part_holds_is_said_and_what_is_cut_is_refused() {
        let (old, new) = (file(vec![1; 20], 0), file(vec![2; 20], 0));
        let before = Blocks::of(&old, |_| Ok(())).unwrap();
        assert!(matches!(before.changed(&new, 10 * BLOCK).unwrap().0, Changed::TooMuch));
        let (Changed::These(changed), _) = before.changed(&new, 21 * BLOCK).unwrap() else { panic!("they fit") };
        let made = tempfile::tempfile().unwrap();
        for cut in [1, BLOCK, BLOCK + NUMBER - 1] {
            let refused = apply(&changed[..changed.len() - cut], &made, new.bytes()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
        assert!(apply(&changed, &made, BLOCK as u64).is_err(), "a block behind the end");
    }
}
