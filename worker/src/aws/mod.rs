//! AWS's query protocol, as far as access keys need it: five calls of IAM and one of STS, each signed by the SDK's own
//! signer. The client that AWS generates for IAM alone is as large as S3's, 220,000 lines, and everybody would compile it.

mod answers;

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use chrono::DateTime;
use reqwest::header::CONTENT_TYPE;
use schemas::Timestamp;
use secrets::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tracing::Instrument;
use url::Url;

use self::answers::{Caller, Created, ErrorAnswer, LastUsed, Listed};
use crate::channels::message::cut;
use crate::handler::{Failure, OrFail};
use crate::outside;

/// Each call.
const DEADLINE: Duration = Duration::from_secs(30);

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// An account at AWS, as somebody with these credentials sees it.
pub(crate) struct Aws<'w> {
    http: &'w reqwest::Client,
    credentials: Credentials,
    iam: Service,
    sts: Service,
}

/// A service: where it is, and how its requests are signed.
#[derive(Clone)]
struct Service {
    name: &'static str,
    version: &'static str,
    url: Url,
    region: String,
}

/// An access key that was just made; its secret is never shown again.
pub(crate) struct NewKey {
    pub(crate) id: String,
    pub(crate) secret: SecretString,
}

/// An access key of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) active: bool,
    pub(crate) created_at: Timestamp,
}

/// When and for what a key was last used, as far as AWS has noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) at: Timestamp,
    pub(crate) service: String,
    pub(crate) region: String,
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AwsError {
    /// It was refused, and not done.
    #[error("AWS refuses `{action}`: {code}: {message}")]
    Refused { action: &'static str, code: String, message: String },
    /// It was not answered, or not by AWS's own word: nobody knows.
    #[error("AWS gave no answer to `{action}`: {why}")]
    NoAnswer { action: &'static str, why: String },
}

impl AwsError {
    /// The code of a refusal.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NoAnswer { .. } => None,
        }
    }

    fn may_pass(&self) -> bool {
        const PASSING: &[&str] = &[
            "ConcurrentModification",
            "EntityTemporarilyUnmodifiable",
            "RequestLimitExceeded",
            "ServiceFailure",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        ];
        self.code().is_none_or(|code| PASSING.contains(&code))
    }

    fn advice(&self) -> &'static str {
        match self.code() {
            Some("AccessDenied" | "AccessDeniedException") => {
                "allow the credentials of this rotation iam:CreateAccessKey, iam:ListAccessKeys, iam:UpdateAccessKey, \
                 iam:GetAccessKeyLastUsed and iam:DeleteAccessKey on that user, and retry the job"
            }
            Some("InvalidClientTokenId" | "SignatureDoesNotMatch" | "ExpiredToken" | "UnrecognizedClientException") => {
                "the credentials of this rotation are not valid; put in new ones and retry the job"
            }
            Some("NoSuchEntity") => {
                "check `user`: there is no IAM user of that name in the account of these credentials"
            }
            _ => "look at AWS's answer, and retry the job",
        }
    }

    /// As a job's failure: retried where it may pass.
    pub(crate) fn into_failure(self) -> Failure {
        if self.may_pass() {
            return Failure::retry(self);
        }
        let advice = self.advice();
        Failure::Discard(anyhow::Error::new(self).context(advice))
    }
}

impl<'w> Aws<'w> {
    /// The account that these credentials (`key id:secret`; without them the usual AWS sources) belong to.
    pub(crate) async fn open(
        http: &'w reqwest::Client,
        credentials: Option<&SecretString>,
        region: &str,
        endpoint: Option<&Url>,
    ) -> Result<Self, Failure> {
        let credentials = match credentials {
            Some(text) => parse_credentials(text)?,
            None => from_the_usual_sources().await?,
        };
        let (iam, sts) = services(region, endpoint)?;
        Ok(Self { http, credentials, iam, sts })
    }

    /// The same account, as who holds that key sees it.
    pub(crate) fn by_key(&self, id: &str, secret: &SecretString) -> Self {
        let credentials = Credentials::new(id, secret.expose_secret(), None, None, "rotation");
        Self { http: self.http, credentials, iam: self.iam.clone(), sts: self.sts.clone() }
    }

    /// Makes a key. Not idempotent: each call makes another.
    pub(crate) async fn create_key(&self, user: &str) -> Result<NewKey, AwsError> {
        let created: Created = self.call(&self.iam, "CreateAccessKey", &[("UserName", user)]).await?;
        let key = created.create_access_key_result.access_key;
        Ok(NewKey { id: key.access_key_id, secret: key.secret_access_key.into() })
    }

    /// The user's keys: never more than two.
    pub(crate) async fn keys(&self, user: &str) -> Result<Vec<Key>, AwsError> {
        const ACTION: &str = "ListAccessKeys";
        let listed: Listed = self.call(&self.iam, ACTION, &[("UserName", user)]).await?;
        let members = listed.list_access_keys_result.access_key_metadata.member;
        members
            .into_iter()
            .map(|member| {
                let created_at = time(&member.create_date, ACTION)?;
                Ok(Key { active: member.status == "Active", id: member.access_key_id, created_at })
            })
            .collect()
    }

    /// Lets a key be valid, or not: twice is as once.
    pub(crate) async fn set_active(&self, user: &str, key: &str, active: bool) -> Result<(), AwsError> {
        let status = if active { "Active" } else { "Inactive" };
        let parameters = [("UserName", user), ("AccessKeyId", key), ("Status", status)];
        self.send(&self.iam, "UpdateAccessKey", &parameters).await.map(drop)
    }

    /// When a key was last used; none where it never was.
    pub(crate) async fn last_use(&self, key: &str) -> Result<Option<Use>, AwsError> {
        const ACTION: &str = "GetAccessKeyLastUsed";
        let answer: LastUsed = self.call(&self.iam, ACTION, &[("AccessKeyId", key)]).await?;
        let used = answer.get_access_key_last_used_result.access_key_last_used;
        let Some(at) = used.last_used_date.filter(|date| !date.is_empty()) else { return Ok(None) };
        Ok(Some(Use { at: time(&at, ACTION)?, service: used.service_name, region: used.region }))
    }

    /// Takes a key away for good; one that is gone already is no error.
    pub(crate) async fn delete_key(&self, user: &str, key: &str) -> Result<(), AwsError> {
        match self.send(&self.iam, "DeleteAccessKey", &[("UserName", user), ("AccessKeyId", key)]).await {
            Err(error) if error.code() != Some("NoSuchEntity") => Err(error),
            _ => Ok(()),
        }
    }

    /// Who these credentials are: an ARN. Needs no right.
    pub(crate) async fn caller(&self) -> Result<String, AwsError> {
        let caller: Caller = self.call(&self.sts, "GetCallerIdentity", &[]).await?;
        Ok(caller.get_caller_identity_result.arn)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        service: &Service,
        action: &'static str,
        parameters: &[(&str, &str)],
    ) -> Result<T, AwsError> {
        let text = self.send(service, action, parameters).await?;
        // What the reader says may repeat the answer, and the answer may hold a secret.
        quick_xml::de::from_str(&text).map_err(|_| AwsError::NoAnswer { action, why: "it is not AWS's form".into() })
    }

    async fn send(
        &self,
        service: &Service,
        action: &'static str,
        parameters: &[(&str, &str)],
    ) -> Result<String, AwsError> {
        let no_answer = |error: reqwest::Error| AwsError::NoAnswer {
            action,
            why: format!("{:#}", anyhow::Error::new(error.without_url())),
        };
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("Action", action), ("Version", service.version)])
            .extend_pairs(parameters)
            .finish();
        let mut request = self.http.post(service.url.clone()).header(CONTENT_TYPE, FORM).timeout(DEADLINE);
        for (name, value) in self.signature(service, &body).map_err(|why| AwsError::NoAnswer { action, why })? {
            request = request.header(name, value);
        }
        let span = outside::aws(service.name, action);
        let answer = async {
            let response = request.body(body).send().await?;
            Ok((response.status(), response.text().await?))
        };
        let (status, text) = answer.instrument(span).await.map_err(no_answer)?;
        if status.is_success() { Ok(text) } else { Err(refusal(action, status, &text)) }
    }

    /// The headers that sign a request. The wall clock is read here: AWS refuses a signature that is minutes off.
    fn signature(&self, service: &Service, body: &str) -> Result<Vec<(String, String)>, String> {
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&service.region)
            .name(service.name)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| format!("it cannot be signed: {error}"))?
            .into();
        let headers = std::iter::once(("content-type", FORM));
        let request = SignableRequest::new("POST", service.url.as_str(), headers, SignableBody::Bytes(body.as_bytes()))
            .map_err(|error| format!("it cannot be signed: {error}"))?;
        let signed = sign(request, &parameters).map_err(|error| format!("it cannot be signed: {error}"))?;
        let (instructions, _) = signed.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

fn refusal(action: &'static str, status: reqwest::StatusCode, text: &str) -> AwsError {
    match quick_xml::de::from_str::<ErrorAnswer>(text) {
        Ok(answer) if !status.is_server_error() => {
            AwsError::Refused { action, code: answer.error.code, message: cut(&answer.error.message, 300) }
        }
        _ => AwsError::NoAnswer { action, why: format!("it answered {status}") },
    }
}

fn time(text: &str, action: &'static str) -> Result<Timestamp, AwsError> {
    let unreadable = |_| AwsError::NoAnswer { action, why: "a time in it cannot be read".into() };
    DateTime::parse_from_rfc3339(text).map(|time| time.to_utc()).map_err(unreadable)
}

/// `key id:secret`.
fn parse_credentials(text: &SecretString) -> Result<Credentials, Failure> {
    let (id, secret) = text.expose_secret().split_once(':').ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!("the AWS credentials are not `access key id:secret access key`"))
    })?;
    Ok(Credentials::new(id.trim(), secret.trim(), None, None, "configuration"))
}

async fn from_the_usual_sources() -> Result<Credentials, Failure> {
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let loaded =
        aws_config::defaults(BehaviorVersion::latest()).http_client(http).region(Region::new("us-east-1")).load();
    let shared = loaded.await;
    let provider = shared.credentials_provider().ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!("there are no AWS credentials in the usual places; see docs/rotation.md"))
    })?;
    provider.provide_credentials().await.or_retry("asking for AWS credentials")
}

/// IAM is one for each partition of AWS, and STS one for each region.
fn services(region: &str, endpoint: Option<&Url>) -> Result<(Service, Service), Failure> {
    let (iam, domain, home) = match region.split('-').next() {
        Some("cn") => ("iam.cn-north-1", "amazonaws.com.cn", "cn-north-1"),
        Some("us") if region.starts_with("us-gov-") => ("iam.us-gov", "amazonaws.com", "us-gov-west-1"),
        _ => ("iam", "amazonaws.com", "us-east-1"),
    };
    let url = |host: Cow<'_, str>| match endpoint {
        Some(url) => Ok(url.clone()),
        None => Url::parse(&format!("https://{host}/")).or_discard("making the address of AWS from the region"),
    };
    let iam = Service {
        name: "iam",
        version: "2010-05-08",
        url: url(format!("{iam}.{domain}").into())?,
        region: home.to_owned(),
    };
    let sts = Service {
        name: "sts",
        version: "2011-06-15",
        url: url(format!("sts.{region}.{domain}").into())?,
        region: region.to_owned(),
    };
    Ok((iam, sts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_own_iam_and_each_region_its_sts() {
        let of = |region: &str| {
            let (iam, sts) = services(region, None).unwrap();
            [iam.url.to_string(), iam.region, sts.url.to_string(), sts.region]
        };
        assert_eq!(
            of("eu-central-1"),
            ["https://iam.amazonaws.com/", "us-east-1", "https://sts.eu-central-1.amazonaws.com/", "eu-central-1",]
        );
        assert_eq!(of("cn-northwest-1")[0], "https://iam.cn-north-1.amazonaws.com.cn/");
        assert_eq!(of("us-gov-east-1")[..2], ["https://iam.us-gov.amazonaws.com/", "us-gov-west-1"]);
        assert_eq!(of("us-west-2")[0], "https://iam.amazonaws.com/");
    }

    #[test]
    fn a_refusal_is_read_and_what_is_none_of_awss_is_no_answer() {
        let limit = r#"<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type>
            <Code>LimitExceeded</Code><Message>Cannot exceed quota for AccessKeysPerUser: 2</Message></Error>
            <RequestId>1</RequestId></ErrorResponse>"#;
        let status = reqwest::StatusCode::CONFLICT;
        assert_eq!(refusal("CreateAccessKey", status, limit).code(), Some("LimitExceeded"));
        assert!(matches!(refusal("CreateAccessKey", status, "<html>"), AwsError::NoAnswer { .. }));
        let failed = refusal("CreateAccessKey", reqwest::StatusCode::BAD_GATEWAY, limit).into_failure();
        assert!(matches!(failed, Failure::Retry { .. }));
        let throttled = limit.replace("LimitExceeded", "Throttling");
        assert!(matches!(refusal("CreateAccessKey", status, &throttled).into_failure(), Failure::Retry { .. }));
        assert!(matches!(refusal("CreateAccessKey", status, limit).into_failure(), Failure::Discard(_)));
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_not_repeated() {
        assert!(
            quick_xml::de::from_str::<Created>("<CreateAccessKeyResponse><a>canary</a></CreateAccessKeyResponse>")
                .is_err()
        );
        assert!(parse_credentials(&"canary".into()).unwrap_err().words().contains("access key id:secret"));
        assert!(!parse_credentials(&"canary".into()).unwrap_err().words().contains("canary"));
    }
}
