use tokio::io::AsyncReadExt;

use super::*;

/// Bytes that compress a little and are not the same everywhere.
fn sample(length: usize) -> Vec<u8> {
    let mut state = 7_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    })
    .take(length)
    .collect()
}

async fn packed_sample(dump: &[u8]) -> (Vec<u8>, Packed) {
    packed_with(dump, Seal::default()).await
}

async fn packed_with(dump: &[u8], seal: Seal) -> (Vec<u8>, Packed) {
    let Packing { input, mut output, thread } = Packing::start(seal);
    let pieces: Vec<Bytes> = dump.chunks(100_000).map(Bytes::copy_from_slice).collect();
    let feeding = tokio::spawn(async move {
        for piece in pieces {
            input.send(piece).await.unwrap();
        }
    });
    let mut stored = Vec::new();
    while let Some(piece) = output.recv().await {
        stored.extend_from_slice(&piece);
    }
    feeding.await.unwrap();
    (stored, thread.await.unwrap().unwrap())
}

async fn read_back(stored: Vec<u8>, packed: &Packed) -> io::Result<Vec<u8>> {
    read_with(stored, packed, None).await
}

async fn read_with(stored: Vec<u8>, packed: &Packed, seal: Option<Seal>) -> io::Result<Vec<u8>> {
    let mut unpacked = unpack(io::Cursor::new(stored), packed.plain.clone(), packed.stored.clone(), seal);
    let mut dump = Vec::new();
    let read = unpacked.reader.read_to_end(&mut dump).await;
    let verdict = unpacked.verdict.await.unwrap();
    assert_eq!(read.is_ok(), verdict.is_ok());
    read.map(|_| dump)
}

#[tokio::test]
async fn what_is_packed_comes_back_and_is_measured_on_both_sides() {
    for length in [0, 1, 3_000_000] {
        let dump = sample(length);
        let (stored, packed) = packed_sample(&dump).await;
        assert_eq!(packed.stored.bytes, stored.len() as u64);
        assert_eq!(packed.plain.sha256, hex::encode(Sha256::digest(&dump)));
        assert_eq!(read_back(stored, &packed).await.unwrap(), dump);
    }
}

#[tokio::test]
async fn any_flipped_byte_any_cut_and_anything_added_is_found() {
    let (stored, packed) = packed_sample(&sample(300_000)).await;
    let mut damaged: Vec<Vec<u8>> = Vec::new();
    for at in [0, 5, stored.len() / 3, stored.len() / 2, stored.len() - 1] {
        let mut flipped = stored.clone();
        flipped[at] ^= 1;
        damaged.push(flipped);
    }
    damaged.extend([1, stored.len() / 2, stored.len()].map(|cut| stored[..stored.len() - cut].to_vec()));
    damaged.push([&stored[..], b"x"].concat());
    damaged.push([&stored[..], &stored[..]].concat());
    for bytes in damaged {
        let error = read_back(bytes, &packed).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

#[tokio::test]
async fn another_whole_dump_in_its_place_is_found() {
    let (_, packed) = packed_sample(&sample(1000)).await;
    let (other, _) = packed_sample(&sample(1001)).await;
    assert!(read_back(other, &packed).await.is_err());
}

#[tokio::test]
async fn what_is_sealed_opens_with_a_right_key_alone_and_any_damage_is_found() {
    let (key, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
    let dump = sample(300_000);
    let (stored, packed) = packed_with(&dump, Seal::for_tests(&[&key, &other])).await;
    assert!(stored.starts_with(b"age-encryption.org/v1\n"));
    for key in [&key, &other] {
        let opened = read_with(stored.clone(), &packed, Some(Seal::for_tests(&[key]))).await;
        assert_eq!(opened.unwrap(), dump);
    }
    let stranger = Seal::for_tests(&[&age::x25519::Identity::generate()]);
    let refused = read_with(stored.clone(), &packed, Some(stranger)).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
    let mut damaged: Vec<Vec<u8>> = Vec::new();
    for at in [0, 40, stored.len() / 2, stored.len() - 1] {
        let mut flipped = stored.clone();
        flipped[at] ^= 1;
        damaged.push(flipped);
    }
    damaged.extend([1, 20, stored.len() / 2, stored.len()].map(|cut| stored[..stored.len() - cut].to_vec()));
    damaged.push([&stored[..], b"x"].concat());
    for bytes in damaged {
        let error = read_with(bytes, &packed, Some(Seal::for_tests(&[&key]))).await.unwrap_err();
        // A flipped byte in what says for whom it is may look like a key that does not fit.
        let found = [io::ErrorKind::InvalidData, io::ErrorKind::PermissionDenied];
        assert!(found.contains(&error.kind()), "{error:?}");
    }
}

#[tokio::test]
async fn a_store_that_breaks_off_is_not_called_damage() {
    let (stored, packed) = packed_sample(&sample(300_000)).await;
    let half = Bytes::copy_from_slice(&stored[..stored.len() / 2]);
    let broken = io::Error::new(io::ErrorKind::ConnectionReset, "reset");
    let reader = StreamReader::new(stream::iter([Ok(half), Err(broken)]));
    let mut unpacked = unpack(reader, packed.plain, packed.stored, None);
    let error = unpacked.reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}
