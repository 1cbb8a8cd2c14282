//! Secrets from AWS Secrets Manager: the built binary against a real server of its protocol.

use serde_json::json;
use tests::binary::House;
use uuid::Uuid;

/// Stores a secret that is a JSON object.
async fn store(endpoint: &str, name: &str, value: &serde_json::Value) {
    let request = json!({"Name": name, "SecretString": value.to_string(), "ClientRequestToken": Uuid::new_v4()});
    let signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, SignedHeaders=host, \
                  Signature=none";
    let http = worker::world::http_client();
    let stored = http
        .post(endpoint)
        .header("x-amz-target", "secretsmanager.CreateSecret")
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", signed)
        .body(request.to_string());
    assert!(stored.send().await.unwrap().status().is_success());
}

fn house(endpoint: &str, name: &str) -> House {
    let config = format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[vault]
url = "aws-secrets-manager:?region=us-east-1&endpoint={endpoint}"
[sources.github]
secrets = ["${{vault:{name}#webhook}}"]
"#
    );
    let credentials =
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")];
    House::new(&config).with_environment(&credentials)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_secret_is_in_the_vault_takes_deliveries() {
    let (endpoint, name) = (tests::server("NIGHTPORTER_TEST_S3"), format!("np/{}", Uuid::new_v4().simple()));
    store(&endpoint, &name, &json!({"webhook": "canary-in-the-vault"})).await;
    let house = house(&endpoint, &name);
    let up = house.start("up");
    let answer = house.run(&["trigger", "github", "push", "--json", "--url", &up.server()]).exits(0).json();
    assert!(answer["event_id"].is_string());
    assert!(up.stop().success());
    assert!(!std::fs::read_to_string(house.path("up.log")).unwrap().contains("canary-in-the-vault"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_the_vault_does_not_have_is_named_at_the_start_and_by_the_command() {
    let endpoint = tests::server("NIGHTPORTER_TEST_S3");
    let house = house(&endpoint, "np/none");
    let up = house.start("up");
    let refused = house.run(&["trigger", "github", "push", "--url", &up.server()]).exits(2);
    assert!(refused.stderr.contains("${vault:np/none#webhook}"), "{}", refused.stderr);
    assert!(up.stop().success());
    let log = std::fs::read_to_string(house.path("up.log")).unwrap();
    assert!(log.contains("its deliveries cannot be verified"), "{log}");
}
