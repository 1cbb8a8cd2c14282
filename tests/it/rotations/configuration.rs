//! What `check` says of rotations.

use tests::binary::House;

const RIGHT: &str = r#"
[connections.github]
token = "${env:GITHUB_TOKEN}"
[connections.vercel]
token = "${env:VERCEL_TOKEN}"
[vault]
url = "aws-secrets-manager:?region=us-east-1"
[sources.github]
secrets = ["${vault:np/github#webhook}"]
[rotations.hook]
secret = "np/github"
webhook = { source = "github", field = "webhook", github = [{ repository = "acme/app", id = 4711 }] }
[rotations.key]
secret = "app/s3"
aws_access_key = { user = "backups", credentials = "${vault:np/iam}" }
[rotations.key.consumers.app.vercel]
project = "app"
variables = { AWS_ACCESS_KEY_ID = "{{ access_key_id }}", AWS_SECRET_ACCESS_KEY = "{{ secret_access_key }}" }
health = { url = "https://app.example.com/health", expect = { json = { "/s3" = "ok" } } }
[rotations.key.consumers.ci.github_secret]
repository = "acme/app"
secret = "AWS_SECRET_ACCESS_KEY"
value = "{{ secret_access_key }}"
workflow = { file = "smoke.yml", ref = "main" }
[databases.main]
url = "postgres://porter:${env:PORTER_PASSWORD}@db.example.com/app"
[rotations.role]
secret = "app/database"
postgres = { database = "main", roles = ["app"], accept_gap = true }
"#;

#[test]
fn what_is_wrong_with_a_rotation_is_said_where_it_stands() {
    House::new(RIGHT).run(&["check"]).exits(0);
    for (right, wrong, said) in [
        ("[connections.github]\ntoken = \"${env:GITHUB_TOKEN}\"", "", "add [connections.github]"),
        ("[connections.vercel]\ntoken = \"${env:VERCEL_TOKEN}\"", "", "add [connections.vercel]"),
        ("source = \"github\"", "source = \"gihub\"", "did you mean `github`?"),
        ("field = \"webhook\"", "field = \"other\"", "${vault:np/github#other}"),
        ("repository = \"acme/app\", id", "organization = \"acme/app\", id", "no organisation's name"),
        ("{ repository = \"acme/app\", id", "{ id", "write either a `repository` or an `organization`"),
        ("\"${vault:np/iam}\"", "\"AKIA:secret\"", "a secret stands in the file"),
        ("{{ access_key_id }}", "{{ access_key_id", "`{{` is not closed"),
        ("{{ secret_access_key }}\"\nworkflow", "none\"\nworkflow", "nothing of the secret is in it"),
        ("health = {", "redeploy = true # {", "nothing would prove that the app works with it"),
        ("{ \"/s3\" = \"ok\" }", "{ \"s3\" = \"ok\" }", "no JSON pointer"),
        ("secret = \"AWS_SECRET", "secret = \"GITHUB_SECRET", "to itself"),
        ("file = \"smoke.yml\"", "file = \"a/smoke.yml\"", "no workflow's file"),
        (", accept_gap = true", "", "name a second login role that has the same rights, or say `accept_gap = true`"),
        ("roles = [\"app\"]", "roles = [\"app\", \"app\"]", "write two login roles that take turns"),
        ("user = \"backups\"", "user = \"arn:aws:iam::1:user/backups\"", "no IAM user's name"),
        (
            "project = \"app\"\n",
            "project = \"app\"\ntargets = [\"development\"]\n",
            "no sensitive variable for development",
        ),
    ] {
        let text = RIGHT.replacen(right, wrong, 1);
        assert_ne!(text, RIGHT, "{right}");
        let ended = House::new(&text).run(&["check"]);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(all.contains(said), "{wrong}: {all}");
    }
}
