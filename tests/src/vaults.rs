//! Vaults to test in: AWS Secrets Manager as moto plays it, and a file.

use std::path::PathBuf;
use std::sync::Arc;

use secrets::ExposeSecret;
use secrets::SecretText;
use secrets::vaults::{AwsVault, FileVault, Recipient, Token, Vault, new_key};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// A vault, and what keeps it.
pub struct TestVault {
    /// The vault.
    pub vault: Arc<dyn Vault>,
    /// How a configuration spells it.
    pub config: String,
    /// Of a file: where it lies, with its key and the second one.
    pub file: Option<VaultFile>,
}

/// A vault in a file.
pub struct VaultFile {
    folder: TempDir,
    /// The recipients of this machine's key and of the second one.
    pub recipients: [String; 2],
}

impl TestVault {
    /// On the server that `tests/run` started.
    pub async fn aws() -> Self {
        let endpoint = crate::server(crate::s3::SERVER);
        let vault = AwsVault::with_key("us-east-1", &endpoint, "test", &"test".into()).await;
        let config = format!("url = \"aws-secrets-manager:?region=us-east-1&endpoint={endpoint}\"");
        Self { vault: Arc::new(vault), config, file: None }
    }

    /// In a new file.
    pub async fn file() -> Self {
        let file = VaultFile::new();
        let vault = file.open();
        vault.init().await.expect("a vault is made");
        let config = format!(
            "url = \"file:{}\"\nidentity = \"${{file:{}}}\"\nrecipients = {:?}",
            file.path().display(),
            file.key().display(),
            file.recipients
        );
        Self { vault: Arc::new(vault), config, file: Some(file) }
    }

    /// A name that no other test has.
    pub fn name(&self) -> String {
        format!("np/{}", Uuid::new_v4().simple())
    }

    /// A secret with this value.
    pub async fn secret(&self, value: &str) -> (String, Token) {
        let (name, token) = (self.name(), token());
        self.vault.create(&name, &token, &value.into()).await.expect("a secret is made");
        (name, token)
    }
}

impl VaultFile {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let keys = ["vault.key", "second.key"].map(|name| {
            let (key, recipient) = new_key();
            std::fs::write(folder.path().join(name), format!("{}\n", key.expose_secret())).expect("a key is written");
            recipient
        });
        Self { folder, recipients: keys }
    }

    /// The vault in it, as another process opens it.
    pub fn open(&self) -> FileVault {
        self.open_for(&self.recipients)
    }

    /// The vault in it, written for others.
    pub fn open_for(&self, recipients: &[String]) -> FileVault {
        let identity = SecretText::parse(&format!("${{file:{}}}", self.key().display())).expect("a text");
        let recipients = recipients.iter().map(|one| Recipient::try_from(one.clone()).expect("a recipient"));
        FileVault::new(self.path(), identity, recipients.collect())
    }

    /// Where the vault lies.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("vault.age")
    }

    /// This machine's key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("vault.key")
    }

    /// The second one.
    pub fn second_key(&self) -> PathBuf {
        self.folder.path().join("second.key")
    }
}

/// A token that no other has.
pub fn token() -> Token {
    Token::from(Uuid::new_v4())
}

/// A call of Secrets Manager that no vault makes, for what others do to a secret; its answer.
pub async fn call_aws(operation: &str, request: &Value) -> Value {
    let signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, SignedHeaders=host, \
                  Signature=none";
    let http = crate::backup_world::http();
    let called = http
        .post(crate::server(crate::s3::SERVER))
        .header("x-amz-target", format!("secretsmanager.{operation}"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", signed)
        .body(request.to_string());
    let answer = called.send().await.expect("the server answers");
    assert!(answer.status().is_success(), "{operation}: {}", answer.status());
    answer.json().await.unwrap_or_else(|_| json!({}))
}
