//! The vault, as the team and its shop speak to it: AWS Secrets Manager's protocol.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::team::Team;

/// Puts a new secret into the vault.
pub(crate) async fn keep(endpoint: &str, name: &str, value: &Value) -> Result<()> {
    let request = json!({"Name": name, "SecretString": value.to_string(), "ClientRequestToken": Uuid::new_v4()});
    ask(endpoint, "CreateSecret", &request).await.map(drop)
}

/// The value of a secret that is current.
pub(crate) async fn value(team: &Team, name: &str) -> Result<Value> {
    Reader::of(team, name).value().await
}

/// How many versions of a secret have a label.
pub(crate) async fn versions(team: &Team, name: &str) -> Result<usize> {
    let described = ask(&team.bucket.endpoint, "DescribeSecret", &json!({"SecretId": name})).await?;
    Ok(described["VersionIdsToStages"].as_object().map_or(0, serde_json::Map::len))
}

/// Who reads one secret.
pub(crate) struct Reader {
    endpoint: String,
    name: String,
}

impl Reader {
    pub(crate) fn of(team: &Team, name: &str) -> Self {
        Self { endpoint: team.bucket.endpoint.clone(), name: name.to_owned() }
    }

    pub(crate) async fn value(&self) -> Result<Value> {
        // The label is AWS's default; the test server's is the version that was put first.
        let current = json!({"SecretId": self.name, "VersionStage": "AWSCURRENT"});
        let read = ask(&self.endpoint, "GetSecretValue", &current).await?;
        let text = read["SecretString"].as_str().context("a secret without a text")?;
        Ok(serde_json::from_str(text)?)
    }
}

async fn ask(endpoint: &str, action: &str, request: &Value) -> Result<Value> {
    let signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, SignedHeaders=host, \
                  Signature=none";
    let asked = worker::world::http_client()
        .post(endpoint)
        .header("x-amz-target", format!("secretsmanager.{action}"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", signed)
        .body(request.to_string());
    let answer = asked.send().await.context("the vault does not answer")?;
    ensure!(answer.status().is_success(), "the vault refuses {action}: {}", answer.status());
    Ok(answer.json().await?)
}
