//! An upload to S3: parts of one size, a few under way at once; an object smaller than a part is put in one call.
//!
//! Memory is bounded by the part size times the parts under way and the one that is being filled.

use std::mem;

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;
use tracing::{Instrument, warn};

use super::s3::{Place, failure, is_there_already, status};
use super::{Put, Upload};
use crate::handler::{Failure, OrFail};

const MIB: u64 = 1024 * 1024;
/// So many parts are under way at once.
const PARTS_UNDER_WAY: usize = 2;
/// S3 takes 10,000 parts; half of them, so that a dump may come out twice as large as expected.
const PARTS_EXPECTED: u64 = 5_000;
/// The number of the last part that S3 takes.
const LAST_PART: i32 = 10_000;

pub(super) struct S3Upload {
    place: Place,
    key: String,
    part_bytes: usize,
    filling: BytesMut,
    /// None until the first part is full.
    multipart: Option<Multipart>,
}

struct Multipart {
    place: Place,
    key: String,
    id: String,
    last: i32,
    under_way: JoinSet<Result<CompletedPart, Failure>>,
    parts: Vec<CompletedPart>,
    /// Completed or aborted: nothing is left to be aborted.
    settled: bool,
}

impl S3Upload {
    pub(super) fn new(place: Place, key: &str, expected_bytes: u64) -> Self {
        let part_bytes = usize::try_from(part_size(expected_bytes)).unwrap_or(usize::MAX);
        Self { place, key: key.to_owned(), part_bytes, filling: BytesMut::new(), multipart: None }
    }

    async fn send_part(&mut self, part: Bytes) -> Result<(), Failure> {
        if self.multipart.is_none() {
            self.multipart = Some(Multipart::create(&self.place, &self.key).await?);
        }
        match &mut self.multipart {
            Some(multipart) => multipart.send(part).await,
            None => Ok(()),
        }
    }
}

/// One size for all parts, chosen before the first: R2 demands that they are equal, S3 that they are few.
fn part_size(expected_bytes: u64) -> u64 {
    expected_bytes.div_ceil(PARTS_EXPECTED).next_multiple_of(8 * MIB).clamp(16 * MIB, 5 * 1024 * MIB)
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = self.part_bytes - self.filling.len();
            self.filling.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if self.filling.len() == self.part_bytes {
                let part = mem::take(&mut self.filling).freeze();
                self.send_part(part).await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Put, Failure> {
        let rest = mem::take(&mut self.filling).freeze();
        if self.multipart.is_none() {
            return self.place.put(&self.key, rest, self.place.storage_class.clone()).await;
        }
        if !rest.is_empty() {
            self.send_part(rest).await?;
        }
        match self.multipart.take() {
            Some(multipart) => multipart.complete().await,
            None => Ok(Put::Written),
        }
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(mut multipart) = self.multipart.take() {
            multipart.under_way.shutdown().await;
            multipart.settled = true;
            abort(multipart.place.clone(), multipart.key.clone(), multipart.id.clone()).await;
        }
    }
}

impl Multipart {
    async fn create(place: &Place, key: &str) -> Result<Self, Failure> {
        let create = place.client.create_multipart_upload().bucket(&place.bucket).key(place.full(key)?);
        let create = create
            .set_storage_class(place.storage_class.clone())
            .set_checksum_algorithm(place.checksum.clone())
            .set_checksum_type(place.checksum.is_some().then_some(ChecksumType::FullObject));
        let created = create
            .send()
            .instrument(place.span("CreateMultipartUpload"))
            .await
            .map_err(|error| failure(&error, &format!("beginning to upload {key}")))?;
        let id = created.upload_id().ok_or_else(|| Failure::retry(anyhow::anyhow!("the upload got no id")))?;
        Ok(Self {
            place: place.clone(),
            key: key.to_owned(),
            id: id.to_owned(),
            last: 0,
            under_way: JoinSet::new(),
            parts: Vec::new(),
            settled: false,
        })
    }

    async fn send(&mut self, part: Bytes) -> Result<(), Failure> {
        while self.under_way.len() >= PARTS_UNDER_WAY {
            self.one_part_ends().await?;
        }
        if self.last == LAST_PART {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the dump is more than twice as large as its database seemed: it does not fit into {LAST_PART} parts"
            )));
        }
        self.last += 1;
        let (place, key, id, number) = (self.place.clone(), self.key.clone(), self.id.clone(), self.last);
        self.under_way.spawn(async move { upload_part(&place, &key, &id, number, part).await }.in_current_span());
        Ok(())
    }

    async fn one_part_ends(&mut self) -> Result<(), Failure> {
        if let Some(ended) = self.under_way.join_next().await {
            self.parts.push(ended.or_retry("uploading a part")??);
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<Put, Failure> {
        while !self.under_way.is_empty() {
            self.one_part_ends().await?;
        }
        let mut parts = mem::take(&mut self.parts);
        parts.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let (place, key) = (&self.place, &self.key);
        let full = place.full(key)?;
        let complete = place.client.complete_multipart_upload().bucket(&place.bucket).key(&full).upload_id(&self.id);
        let complete = complete.if_none_match("*").multipart_upload(parts);
        let complete = complete.set_checksum_type(place.checksum.is_some().then_some(ChecksumType::FullObject));
        match complete.send().instrument(place.span("CompleteMultipartUpload")).await {
            Ok(_) => {
                self.settled = true;
                Ok(Put::Written)
            }
            // Dropped below, so what was uploaded in vain is aborted.
            Err(error) if is_there_already(&error) => Ok(Put::AlreadyThere),
            // The answer is lost or makes no sense, or an earlier try whose answer was lost has completed the upload, so
            // that it is gone. Then the object says it; whether it is ours is seen when it is read back.
            Err(error) if matches!(status(&error), None | Some(200 | 404)) => {
                let head = place.client.head_object().bucket(&place.bucket).key(&full);
                let head = head.send().instrument(place.span("HeadObject")).await;
                head.map(|_| Put::AlreadyThere).map_err(|_| failure(&error, &format!("finishing the upload of {key}")))
            }
            Err(error) => Err(failure(&error, &format!("finishing the upload of {key}"))),
        }
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        // At best: a process that is killed leaves its parts to `sweep_uploads`.
        if let (false, Ok(runtime)) = (self.settled, tokio::runtime::Handle::try_current()) {
            runtime.spawn(abort(self.place.clone(), self.key.clone(), self.id.clone()));
        }
    }
}

async fn upload_part(place: &Place, key: &str, id: &str, number: i32, part: Bytes) -> Result<CompletedPart, Failure> {
    let upload = place.client.upload_part().bucket(&place.bucket).key(place.full(key)?).upload_id(id);
    let upload = upload.part_number(number).set_checksum_algorithm(place.checksum.clone());
    let sent = upload.body(ByteStream::from(part)).send().instrument(place.span("UploadPart")).await;
    let sent = sent.map_err(|error| failure(&error, &format!("uploading part {number} of {key}")))?;
    let done = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned));
    Ok(done.set_checksum_crc64_nvme(sent.checksum_crc64_nvme().map(str::to_owned)).build())
}

async fn abort(place: Place, key: String, id: String) {
    let Ok(full) = place.full(&key) else { return };
    let aborted = place.client.abort_multipart_upload().bucket(&place.bucket).key(full).upload_id(id).send().await;
    if let Err(error) = aborted
        && status(&error) != Some(404)
    {
        warn!(key, "an upload could not be aborted; it is swept later: {}", failure_text(&error));
    }
}

fn failure_text(error: &(dyn std::error::Error + 'static)) -> String {
    aws_sdk_s3::error::DisplayErrorContext(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_one_size_and_few_enough_even_at_twice_the_expected_bytes() {
        assert_eq!(part_size(0), 16 * MIB);
        assert_eq!(part_size(80 * 1024 * MIB), 24 * MIB);
        for expected in [1, MIB, 1 << 38, 1 << 44] {
            assert!(2 * expected <= part_size(expected) * 10_000, "{expected}");
        }
    }
}
