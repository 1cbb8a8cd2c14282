//! `secrets`: what lies in the vault. They speak to the vault alone, without a server. No value is ever printed, and none
//! is an argument: everybody on the machine can read those.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use secrets::vaults::{Described, Label, Token, Vault, VaultError, new_key};
use secrets::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::args::Global;
use crate::config::{Checked, VaultAddress};
use crate::failure::{Failure, with_causes};
use crate::output::{facts, table};
use crate::rooms;

/// Who may read a key: its owner.
const PRIVATE: u32 = 0o600;

/// No secret is larger; AWS takes no more.
const LARGEST: usize = 65_536;

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All secrets in the vault, and where their labels stand.
    List,
    /// The versions of one secret, and what each is for.
    Show {
        /// Its name in the vault.
        name: String,
    },
    /// Read a value from standard input and make it the current one.
    Put {
        /// Its name in the vault; one that is not there is made.
        name: String,
        /// Put it into this field of the secret, which is a JSON object, and leave the others.
        #[arg(long)]
        field: Option<String>,
        /// Hand it in to the rotation that waits for it: it becomes the pending version of this name, which is the job's.
        #[arg(long, value_name = "JOB")]
        pending: Option<Token>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Give up a version that a rotation left pending: when nobody uses its value, and its job is gone.
    DropPending {
        /// The secret's name in the vault.
        name: String,
        /// The version that is pending, as `show` prints it.
        version: Token,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a key for a vault in a file, and print the recipient that belongs to it.
    Key {
        /// The file that the key is written to; one that is there is not touched.
        file: PathBuf,
    },
    /// Make the file of the vault that is configured, with nothing in it.
    Init,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::List => {
            let found = open(global).await?.list().await.map_err(said)?;
            global.output().print(&found, |found| list(found))
        }
        Command::Show { name } => {
            let found = open(global).await?.describe(&name).await.map_err(|error| of(&name, error))?;
            global.output().print(&found, show)
        }
        Command::Put { name, field, pending, dry_run } => put(&name, field.as_deref(), pending, dry_run, global).await,
        Command::DropPending { name, version, dry_run } => drop_pending(&name, &version, dry_run, global).await,
        Command::Key { file } => key(&file, global),
        Command::Init => init(global).await,
    }
}

async fn open(global: &Global) -> Result<Arc<dyn Vault>, Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let none =
        || Failure::usage("there is no vault in the configuration").help("add [vault]; docs/rotation.md says how");
    rooms::resolver(&config).await.vault().cloned().ok_or_else(none)
}

/// Puts a value in as a rotation does: pending first, then current by a compare-and-swap, so that nothing is overwritten
/// that came in between.
async fn put(
    name: &str,
    field: Option<&str>,
    pending: Option<Token>,
    dry_run: bool,
    global: &Global,
) -> Result<(), Failure> {
    let vault = open(global).await?;
    let there = match vault.describe(name).await {
        Ok(there) => Some(there),
        Err(VaultError::NotFound) => None,
        Err(error) => return Err(of(name, error)),
    };
    let value = from_stdin()?;
    let value = match (field, &there) {
        (None, _) => value,
        (Some(field), None) => with_field(Map::new(), field, &value),
        (Some(field), Some(_)) => {
            let current = vault.current(name).await.map_err(|error| of(name, error))?;
            let fields: Map<String, Value> = serde_json::from_str(current.expose_secret())
                .map_err(|_| Failure::usage(format!("`{name}` is no JSON object: it has no fields")))?;
            with_field(fields, field, &value)
        }
    };
    let hands_in = pending.is_some();
    if hands_in && there.is_none() {
        return Err(of(name, VaultError::NotFound));
    }
    let token = pending.unwrap_or_else(|| Token::from(Uuid::new_v4()));
    if !dry_run {
        let written = match &there {
            Some(_) if hands_in => vault.put_pending(name, &token, &value).await,
            None => vault.create(name, &token, &value).await,
            Some(there) => replace(&*vault, there, &token, &value).await,
        };
        written.map_err(|error| of(name, error))?;
    }
    let said = match (&there, dry_run) {
        (None, false) => "made",
        (None, true) => "would be made",
        (Some(_), false) if hands_in => "has a new pending version, for the rotation that waits for it",
        (Some(_), true) if hands_in => "would have a new pending version",
        (Some(_), false) => "has a new current version",
        (Some(_), true) => "would have a new current version",
    };
    let answer =
        json!({"name": name, "version": (!dry_run).then_some(&token), "made": there.is_none(), "dry_run": dry_run});
    global.output().print(&answer, |_| format!("{name}: {said}"))
}

async fn replace(vault: &dyn Vault, there: &Described, token: &Token, value: &SecretString) -> Result<(), VaultError> {
    let from = there.holder(Label::Current).ok_or(VaultError::NotFound)?;
    vault.put_pending(&there.name, token, value).await?;
    let promoted = vault.promote(&there.name, token, from).await;
    if matches!(promoted, Err(VaultError::Conflict(_))) {
        vault.drop_pending(&there.name, token).await?;
    }
    promoted
}

fn with_field(mut fields: Map<String, Value>, field: &str, value: &SecretString) -> SecretString {
    fields.insert(field.to_owned(), value.expose_secret().into());
    Value::Object(fields).to_string().into()
}

/// The value from standard input, without its last line break.
fn from_stdin() -> Result<SecretString, Failure> {
    let mut text = String::new();
    let most = u64::try_from(LARGEST).unwrap_or(u64::MAX) + 2;
    std::io::stdin()
        .lock()
        .take(most)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("cannot read the value from standard input: {error}")))?;
    let value = text.strip_suffix('\n').map_or(text.as_str(), |line| line.trim_end_matches('\r'));
    match value.len() {
        0 => Err(Failure::usage("there is no value on standard input").help("nightporter secrets put NAME < FILE")),
        1..=LARGEST => Ok(value.into()),
        _ => Err(Failure::usage(format!("the value is larger than {LARGEST} bytes"))),
    }
}

async fn drop_pending(name: &str, version: &Token, dry_run: bool, global: &Global) -> Result<(), Failure> {
    let vault = open(global).await?;
    let there = vault.describe(name).await.map_err(|error| of(name, error))?;
    if !there.has(version, Label::Pending) {
        return Err(Failure::conflict(format!("the version {version} of `{name}` is not pending")));
    }
    if !dry_run {
        vault.drop_pending(name, version).await.map_err(|error| of(name, error))?;
    }
    let answer = json!({"name": name, "version": version, "dry_run": dry_run});
    let said = if dry_run { "would be dropped" } else { "dropped" };
    global.output().print(&answer, |_| format!("{name}: the pending version {version} {said}"))
}

fn key(path: &Path, global: &Global) -> Result<(), Failure> {
    let (key, recipient) = new_key();
    let text = format!("# a key of age, made by nightporter\n# public key: {recipient}\n{}\n", key.expose_secret());
    let written = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| Failure::failed(format!("cannot write the key {}: {error}", path.display())))?;
    global.output().print(&json!({"file": path, "recipient": recipient}), |_| recipient.clone())
}

async fn init(global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let file = config.vault.as_ref().and_then(|section| match &section.url {
        VaultAddress::File(path) => Some((rooms::file_vault(section, path)?, path.clone())),
        VaultAddress::Aws { .. } => None,
    });
    let (vault, path) = file.ok_or_else(|| Failure::usage("the vault in the configuration is no file"))?;
    vault.init().await.map_err(said)?;
    global.output().print(&json!({"file": path}), |_| format!("{} is made, with nothing in it", path.display()))
}

fn list(found: &[Described]) -> String {
    let version = |secret: &Described, label| secret.holder(label).map_or("-", Token::as_str).to_owned();
    let rows = found.iter().map(|secret| {
        let rotated = if secret.managed { "by the vault" } else { "" };
        [secret.name.clone(), version(secret, Label::Current), version(secret, Label::Pending), rotated.to_owned()]
    });
    table(["NAME", "CURRENT", "PENDING", "ROTATED"], rows)
}

fn show(secret: &Described) -> String {
    let version = |label| secret.holder(label).map(Token::to_string);
    facts([
        ("name", Some(secret.name.clone())),
        ("current", version(Label::Current)),
        ("pending", version(Label::Pending)),
        ("previous", version(Label::Previous)),
        ("rotated", secret.managed.then(|| "by the vault itself".to_owned())),
    ])
}

fn of(name: &str, error: VaultError) -> Failure {
    match error {
        VaultError::NotFound => Failure::not_found(format!("there is no secret `{name}` in the vault"))
            .help("`nightporter secrets list` shows those that there are"),
        error => said(error),
    }
}

fn said(error: VaultError) -> Failure {
    let why = format!("the vault: {}", with_causes(&error));
    match error {
        VaultError::Unavailable(_) => Failure::unavailable(why),
        VaultError::NotFound => Failure::not_found(why),
        VaultError::Refused(_) => Failure::failed(why),
        VaultError::Conflict(_) | VaultError::Managed => Failure::conflict(why),
    }
}
