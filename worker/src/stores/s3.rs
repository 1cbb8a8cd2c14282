//! S3, and what speaks its protocol: R2, `MinIO` and others, by their endpoint.
//!
//! Every call has a deadline and a bounded number of tries. Objects are read in ranges, so that a broken connection costs
//! one range and a slow reader holds no connection open.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, StorageClass};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{StreamExt, stream};
use queue::retry::Pauses;
use schemas::Timestamp;
use tokio_util::io::StreamReader;
use tracing::{Instrument, Span};
use url::Url;

use super::s3_upload::S3Upload;
use super::{Body, ObjectInfo, Put, Store, Upload, checked};
use crate::handler::Failure;
use crate::outside;

/// An object is read in ranges of so many bytes.
const RANGE: u64 = 8 * 1024 * 1024;
/// So many ranges are read ahead.
const READ_AHEAD: usize = 2;
/// Tries of one range.
const TRIES: u32 = 5;
/// A range must have come within this.
const RANGE_DEADLINE: Duration = Duration::from_mins(2);

/// A store in a bucket.
pub struct S3 {
    pub(super) place: Place,
}

/// A bucket, a prefix in it, and how this endpoint wants to be spoken to.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) client: Client,
    pub(super) bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    /// Of data; small objects are always in the standard class, because others bill them as large ones.
    pub(super) storage_class: Option<StorageClass>,
    /// What the server checks what arrives against: only where it is known to understand it.
    pub(super) checksum: Option<ChecksumAlgorithm>,
}

/// What a store's address says.
struct Address {
    bucket: String,
    prefix: String,
    region: Option<String>,
    endpoint: Option<String>,
    storage_class: Option<StorageClass>,
}

impl S3 {
    /// Opens `s3://bucket/prefix?region=...&endpoint=...&storage_class=...`; `credentials` is `key id:secret`, and
    /// without it the usual AWS sources are asked.
    pub async fn open(address: &str, credentials: Option<&str>) -> Result<Self, Failure> {
        let address = Address::parse(address)?;
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(region) = address.region() {
            loader = loader.region(Region::new(region));
        }
        if let Some(credentials) = credentials {
            loader = loader.credentials_provider(parse_credentials(credentials)?);
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the store's region is not known: add `?region=...` to its address, or set AWS_REGION"
            )));
        }
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .timeout_config(deadlines())
            .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
            // What a server checks is chosen below, by its kind; bodies are read by ranges and checked by our digests.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &address.endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        let place = Place {
            client: Client::from_conf(config.build()),
            checksum: address.checksum(),
            bucket: address.bucket,
            prefix: address.prefix,
            storage_class: address.storage_class,
        };
        Ok(Self { place })
    }
}

impl Address {
    fn parse(address: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| {
            let form = "s3://bucket/prefix?region=...&endpoint=...&storage_class=...";
            Failure::Discard(anyhow::anyhow!("the store's address is refused: {why}; write `{form}`"))
        };
        let url = Url::parse(address).map_err(|error| refuse(&error.to_string()))?;
        let bucket = url.host_str().filter(|bucket| !bucket.is_empty()).ok_or_else(|| refuse("it names no bucket"))?;
        let prefix = url.path().trim_matches('/');
        let mut parsed = Self {
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            region: None,
            endpoint: None,
            storage_class: None,
        };
        for (key, value) in url.query_pairs() {
            match &*key {
                "region" => parsed.region = Some(value.into_owned()),
                "endpoint" => parsed.endpoint = Some(value.into_owned()),
                "storage_class" if known_class(&value).is_some() => parsed.storage_class = known_class(&value),
                "storage_class" => {
                    return Err(refuse(&format!("`{value}` is not a storage class that can be read back at once")));
                }
                other => return Err(refuse(&format!("`{other}` is not known"))),
            }
        }
        Ok(parsed)
    }

    fn is_r2(&self) -> bool {
        self.endpoint.as_deref().is_some_and(|endpoint| endpoint.contains(".r2.cloudflarestorage.com"))
    }

    /// R2 knows one region, `auto`; other servers take any, and AWS must be told which, here or by its own settings.
    fn region(&self) -> Option<String> {
        let default = match &self.endpoint {
            Some(_) if self.is_r2() => Some("auto"),
            Some(_) => Some("us-east-1"),
            None => None,
        };
        self.region.clone().or_else(|| default.map(str::to_owned))
    }

    /// Since 2025 the SDK sends checksums that many servers refuse. AWS and R2 both take CRC64NVME of the whole object.
    fn checksum(&self) -> Option<ChecksumAlgorithm> {
        (self.endpoint.is_none() || self.is_r2()).then_some(ChecksumAlgorithm::Crc64Nvme)
    }
}

/// A backup is read back as soon as it is written, which the archive classes don't allow.
fn known_class(name: &str) -> Option<StorageClass> {
    let readable = ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY"];
    readable.contains(&name).then(|| StorageClass::from(name))
}

fn parse_credentials(text: &str) -> Result<SharedCredentialsProvider, Failure> {
    let refuse = || Failure::Discard(anyhow::anyhow!("the store's credentials must be `key id:secret key`"));
    let (id, secret) = text.trim().split_once(':').ok_or_else(refuse)?;
    Ok(SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "nightporter")))
}

fn deadlines() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(10))
        .operation_attempt_timeout(Duration::from_mins(5)) // A part at 1 MB/s.
        .operation_timeout(Duration::from_mins(20))
        .build()
}

impl Place {
    /// The client span of a call.
    pub(super) fn span(&self, operation: &'static str) -> Span {
        outside::s3(operation, &self.bucket)
    }

    pub(super) fn full(&self, key: &str) -> Result<String, Failure> {
        Ok(format!("{}{}", self.prefix, checked(key)?))
    }

    /// Puts a small object, or one that is smaller than a part.
    pub(super) async fn put(&self, key: &str, bytes: Bytes, class: Option<StorageClass>) -> Result<Put, Failure> {
        let put = self.client.put_object().bucket(&self.bucket).key(self.full(key)?).if_none_match("*");
        let put = put.set_storage_class(class).set_checksum_algorithm(self.checksum.clone());
        match put.body(ByteStream::from(bytes)).send().instrument(self.span("PutObject")).await {
            Ok(_) => Ok(Put::Written),
            Err(error) if is_there_already(&error) => Ok(Put::AlreadyThere),
            Err(error) => Err(failure(&error, &format!("writing {key}"))),
        }
    }

    async fn head(&self, key: &str) -> Result<Option<(ObjectInfo, String)>, Failure> {
        let head = self.client.head_object().bucket(&self.bucket).key(self.full(key)?);
        let head = match head.send().instrument(self.span("HeadObject")).await {
            Ok(head) => head,
            Err(error) if status(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(failure(&error, &format!("looking at {key}"))),
        };
        let info = ObjectInfo {
            key: key.to_owned(),
            bytes: size(head.content_length()),
            modified: timestamp(head.last_modified()),
        };
        Ok(Some((info, head.e_tag().unwrap_or("*").to_owned())))
    }

    /// One range of an object, and only of the version that was looked at.
    async fn range(&self, key: &str, version: &str, start: u64, end: u64) -> std::io::Result<Bytes> {
        let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(10), TRIES);
        loop {
            let (transient, words) =
                match tokio::time::timeout(RANGE_DEADLINE, self.fetch(key, version, start, end)).await {
                    Ok(Ok(bytes)) if bytes.len() as u64 == end - start => return Ok(bytes),
                    Ok(Ok(bytes)) => (true, format!("{} bytes came instead of {}", bytes.len(), end - start)),
                    Ok(Err(error)) => error,
                    Err(_) => (true, "the store did not answer in time".to_owned()),
                };
            match pauses.next_pause() {
                Some(pause) if transient => tokio::time::sleep(pause).await,
                _ => return Err(std::io::Error::other(format!("reading {key} from byte {start}: {words}"))),
            }
        }
    }

    /// On failure: whether it may pass, and why in words.
    async fn fetch(&self, key: &str, version: &str, start: u64, end: u64) -> Result<Bytes, (bool, String)> {
        let full = self.full(key).map_err(|failure| (false, failure.words()))?;
        let get = self.client.get_object().bucket(&self.bucket).key(full).if_match(version);
        let got = get.range(format!("bytes={start}-{}", end - 1));
        let got = got.send().instrument(self.span("GetObject")).await;
        let body = got.map_err(|error| (is_transient(&error), DisplayErrorContext(&error).to_string()))?.body;
        let bytes = body.collect().await.map_err(|error| (true, error.to_string()))?;
        Ok(bytes.into_bytes())
    }

    async fn delete_one(&self, key: &str) -> Result<(), Failure> {
        let full = self.full(key)?;
        let delete = self.client.delete_object().bucket(&self.bucket).key(&full);
        let deleted = delete.send().instrument(self.span("DeleteObject")).await;
        deleted.map_err(|error| failure(&error, &format!("deleting {key}")))?;
        match self.head(key).await? {
            None => Ok(()),
            Some(_) => Err(Failure::retry(anyhow::anyhow!(
                "the store said that {key} is deleted, but it is still there (is it locked?)"
            ))),
        }
    }
}

#[async_trait]
impl Store for S3 {
    async fn begin(&self, key: &str, expected_bytes: u64) -> Result<Box<dyn Upload>, Failure> {
        checked(key)?;
        Ok(Box::new(S3Upload::new(self.place.clone(), key, expected_bytes)))
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, Failure> {
        self.place.put(key, bytes, None).await
    }

    async fn get(&self, key: &str) -> Result<Option<Body>, Failure> {
        let Some((info, version)) = self.place.head(key).await? else { return Ok(None) };
        let starts = (0..info.bytes.div_ceil(RANGE)).map(|index| index * RANGE);
        let ranges: Vec<(u64, u64)> = starts.map(|start| (start, (start + RANGE).min(info.bytes))).collect();
        let (place, key) = (self.place.clone(), key.to_owned());
        let chunks = stream::iter(ranges).map(move |(start, end)| {
            let (place, key, version) = (place.clone(), key.clone(), version.clone());
            async move { place.range(&key, &version, start, end).await }
        });
        Ok(Some(Box::new(StreamReader::new(chunks.buffered(READ_AHEAD).boxed()))))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Failure> {
        Ok(self.place.head(key).await?.map(|(info, _)| info))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure> {
        let place = &self.place;
        let full = format!("{}{prefix}", place.prefix);
        let pages = place.client.list_objects_v2().bucket(&place.bucket).prefix(full).into_paginator().send();
        let pages = pages.try_collect().instrument(place.span("ListObjectsV2")).await;
        let pages: Vec<_> = pages.map_err(|error| failure(&error, "listing the store"))?;
        let objects = pages.iter().flat_map(aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output::contents);
        let mut found: Vec<ObjectInfo> = objects
            .filter_map(|object| {
                let key = object.key()?.strip_prefix(&place.prefix)?.to_owned();
                Some(ObjectInfo { key, bytes: size(object.size()), modified: timestamp(object.last_modified()) })
            })
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Failure> {
        // One by one: the call that deletes many demands checksums that not every server knows, and R2 has answered it
        // with success while objects stayed.
        for key in keys {
            self.place.delete_one(key).await?;
        }
        Ok(())
    }

    async fn sweep_uploads(&self, prefix: &str, older_than: Duration, now: Timestamp) -> Result<u64, Failure> {
        let place = &self.place;
        let full = format!("{}{prefix}", place.prefix);
        let mut swept = 0;
        let (mut after_key, mut after_upload) = (None, None);
        loop {
            let list = place.client.list_multipart_uploads().bucket(&place.bucket).prefix(&full);
            let list = list.set_key_marker(after_key).set_upload_id_marker(after_upload);
            let page = list
                .send()
                .instrument(place.span("ListMultipartUploads"))
                .await
                .map_err(|error| failure(&error, "listing unfinished uploads"))?;
            for upload in page.uploads() {
                let age = (now - timestamp(upload.initiated())).to_std().unwrap_or_default();
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                if age >= older_than && key.starts_with(&full) {
                    let abort = place.client.abort_multipart_upload().bucket(&place.bucket).key(key).upload_id(id);
                    match abort.send().instrument(place.span("AbortMultipartUpload")).await {
                        Err(error) if status(&error) != Some(404) => {
                            return Err(failure(&error, "aborting an unfinished upload"));
                        }
                        _ => swept += 1,
                    }
                }
            }
            if !page.is_truncated().unwrap_or(false) {
                return Ok(swept);
            }
            after_key = page.next_key_marker().map(str::to_owned);
            after_upload = page.next_upload_id_marker().map(str::to_owned);
        }
    }
}

/// The key is taken (412). A race (409) is told apart: there the other one may still fail.
pub(super) fn is_there_already<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    status(error) == Some(412)
}

pub(super) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

fn is_transient<E>(error: &SdkError<E>) -> bool {
    match status(error) {
        Some(code) => code >= 500 || matches!(code, 408 | 409 | 429),
        None => !matches!(error, SdkError::ConstructionFailure(_)),
    }
}

/// What an error of the store means for the job: what its server refuses stays refused.
pub(super) fn failure<E>(error: &SdkError<E>, doing: &str) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let words = anyhow::anyhow!("{doing}: {}", DisplayErrorContext(error));
    match status(error) {
        Some(401 | 403) => Failure::Discard(words.context(
            "the store refuses access: check its credentials, and that they may list, read, write and delete there",
        )),
        Some(404) if error.code() == Some("NoSuchBucket") => {
            Failure::Discard(words.context("the bucket does not exist"))
        }
        Some(400 | 405 | 501) => Failure::Discard(words.context("the store does not understand the request")),
        _ => Failure::retry(words),
    }
}

fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or_default()
}

fn timestamp(at: Option<&aws_sdk_s3::primitives::DateTime>) -> Timestamp {
    at.and_then(|at| DateTime::from_timestamp(at.secs(), at.subsec_nanos())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_mistakes_named() {
        let address = Address::parse("s3://acme/main/db?region=eu-central-1&storage_class=STANDARD_IA");
        let Ok(address) = address else { panic!("refused") };
        assert_eq!((address.bucket.as_str(), address.prefix.as_str()), ("acme", "main/db/"));
        assert_eq!((address.region().as_deref(), address.checksum().is_some()), (Some("eu-central-1"), true));
        for wrong in ["s3:///x", "s3://b?storage_class=GLACIER", "s3://b?regoin=x"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_kind_of_endpoint_gets_its_region_and_checksum() {
        let of = |query: &str| {
            let Ok(address) = Address::parse(&format!("s3://b/{query}")) else { panic!("refused: {query}") };
            (address.region(), address.checksum().is_some())
        };
        assert_eq!(of(""), (None, true));
        assert_eq!(of("?endpoint=https://acc.r2.cloudflarestorage.com"), (Some("auto".into()), true));
        assert_eq!(of("?endpoint=https://minio.example.com"), (Some("us-east-1".into()), false));
    }

    #[test]
    fn credentials_are_two_words_and_never_shown() {
        assert!(parse_credentials("AKIA:secret/with+signs=").is_ok());
        let Err(Failure::Discard(error)) = parse_credentials("hunter2") else { panic!("taken") };
        assert!(!format!("{error:#}").contains("hunter2"));
    }
}
