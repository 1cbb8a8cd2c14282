//! The demo's site: a folder with an application's database and migrations, secrets, a store, and the configuration that
//! ties them together. Everything in it works with the other commands too.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{TimeDelta, Utc};
use queue::ledger::Announced;
use secrets::ExposeSecret;
use secrets::vaults::{Token, Vault, new_key};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Executor, SqliteConnection};
use uuid::Uuid;

use crate::config::{Checked, VaultAddress};
use crate::failure::Failure;
use crate::rooms;

/// The sources, which are named as their types.
pub(crate) const SOURCES: [&str; 3] = ["github", "vercel", "clerk"];

/// The secret that the shop signs links with.
pub(crate) const LINKS: &str = "shop/links";

/// The schedule whose time has passed when the demo begins.
const NIGHTLY: &str = "nightly";

/// The commit that the demo deploys.
pub(crate) const COMMIT: &str = "5f6c1d0a9b3e47c8a2d4f10b6e7c8d9e0f1a2b3c";

/// Where everything of the demo lies.
pub(crate) struct Site {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// The configuration in it.
    pub(crate) config: PathBuf,
    /// The public door.
    pub(crate) server: SocketAddr,
    /// The operators' address.
    pub(crate) operators: SocketAddr,
}

impl Site {
    /// Makes the site in a new folder. `receiver` is where notifications go.
    pub(crate) async fn make(parent: &Path, receiver: SocketAddr) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("nightporter-demo-")
            .tempdir_in(parent)
            .map_err(|error| cannot("make a folder in", parent, &error))?
            .keep();
        for name in ["secrets", "migrations", "backups"] {
            fs::create_dir(folder.join(name)).map_err(|error| cannot("make", &folder.join(name), &error))?;
        }
        for source in SOURCES {
            write_secret(&folder, source)?;
        }
        write_secret(&folder, "team")?;
        let (recipient, second) =
            (write_key(&folder, "vault-key")?, write_key(&folder, "vault-key-to-keep-elsewhere")?);
        for (name, sql) in MIGRATIONS {
            write(&folder.join("migrations").join(name), sql)?;
        }
        make_shop(&folder.join("shop.db")).await?;
        let site = Self {
            config: folder.join("nightporter.toml"),
            folder,
            server: an_address(8780)?,
            operators: an_address(8781)?,
        };
        let text = site.configuration(receiver).replace("{recipient}", &recipient).replace("{second}", &second);
        write(&site.config, &text)?;
        site.fill_vault().await?;
        Ok(site)
    }

    /// Makes the ledger as it would be had this porter been away since yesterday: its schedule `nightly` was seen a day
    /// ago, so one of its times has passed since.
    pub(crate) async fn leave_alone_for_a_day(&self) -> Result<(), Failure> {
        let config = Checked::file(&self.config)?.config()?;
        let url = format!("sqlite:{}", self.folder.join("nightporter.db").display());
        let ledger = queue::ledger::open(&url, None).await?;
        let nightly = config.schedules.iter().filter(|schedule| schedule.name == NIGHTLY);
        let announced = nightly
            .map(|schedule| Announced { schedule: schedule.name.clone(), timetable: schedule.timetable.to_string() });
        let yesterday = Utc::now() - TimeDelta::days(1);
        let told = ledger.announce(&config.digest, &announced.collect::<Vec<_>>(), yesterday).await;
        told.map(drop).map_err(|error| cannot("write the ledger in", &self.folder, &error))
    }

    /// Makes the vault that the configuration names, with the key that the shop signs links with.
    async fn fill_vault(&self) -> Result<(), Failure> {
        let config = Checked::file(&self.config)?.config()?;
        let vault = config.vault.as_ref().and_then(|section| match &section.url {
            VaultAddress::File(path) => Some((rooms::file_vault(section, path)?, path)),
            VaultAddress::Aws { .. } => None,
        });
        let none = || Failure::failed("the demo's configuration names no vault in a file");
        let (vault, path) = vault.ok_or_else(none)?;
        let key = format!(r#"{{"key": "{}"}}"#, Uuid::new_v4().simple());
        let made = async {
            vault.init().await?;
            vault.create(LINKS, &Token::from(Uuid::new_v4()), &key.into()).await
        };
        made.await.map_err(|error| cannot("make the vault", path, &error))
    }

    /// What the shop reads its key for links from.
    pub(crate) fn key_of_the_shop(&self) -> PathBuf {
        self.folder.join("shop-links.key")
    }

    /// The secret of a source or channel.
    pub(crate) fn secret(&self, name: &str) -> Result<String, Failure> {
        let path = self.folder.join("secrets").join(name);
        let text = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
        Ok(text.trim().to_owned())
    }

    fn configuration(&self, receiver: SocketAddr) -> String {
        include_str!("nightporter.toml")
            .replace("{folder}", &self.folder.display().to_string())
            .replace("{server}", &self.server.to_string())
            .replace("{operators}", &self.operators.to_string())
            .replace("{receiver}", &receiver.to_string())
    }
}

const MIGRATIONS: [(&str, &str); 2] = [
    (
        "0001_orders.sql",
        "create table orders (\n    id integer primary key,\n    customer integer not null references customers (id),\n    \
         placed_at text not null\n);\n",
    ),
    ("0002_customer_country.sql", "alter table customers add column country text;\n"),
];

/// An application's database, with something in it that a backup must bring back.
async fn make_shop(path: &Path) -> Result<(), Failure> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let made = async {
        let mut shop = SqliteConnection::connect_with(&options).await?;
        shop.execute(
            "create table customers (id integer primary key, name text not null);
             insert into customers (name) with recursive n (i) as (select 1 union all select i + 1 from n where i < 5000)
             select 'customer ' || i from n;",
        )
        .await?;
        shop.close().await
    };
    made.await.map_err(|error: sqlx::Error| cannot("make the sample database", path, &error))
}

/// A secret in the form that every source type and channel here takes.
fn write_secret(folder: &Path, name: &str) -> Result<(), Failure> {
    let path = folder.join("secrets").join(name);
    let bytes: Vec<u8> = [Uuid::new_v4(), Uuid::new_v4()].iter().flat_map(|id| *id.as_bytes()).collect();
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| {
        use std::io::Write;
        writeln!(file, "whsec_{}", STANDARD.encode(bytes))
    });
    written.map_err(|error| cannot("write", &path, &error))
}

/// A key of a vault; its recipient.
fn write_key(folder: &Path, name: &str) -> Result<String, Failure> {
    let path = folder.join("secrets").join(name);
    let (key, recipient) = new_key();
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| {
        use std::io::Write;
        writeln!(file, "{}", key.expose_secret())
    });
    written.map_err(|error| cannot("write", &path, &error)).map(|()| recipient)
}

/// The usual port, or any free one where somebody has it.
fn an_address(usual: u16) -> Result<SocketAddr, Failure> {
    let bind = |port| TcpListener::bind(("127.0.0.1", port)).and_then(|listener| listener.local_addr());
    bind(usual).or_else(|_| bind(0)).map_err(|error| Failure::failed(format!("no free port on 127.0.0.1: {error}")))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| cannot("write", path, &error))
}

fn cannot(what: &str, path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {error}", path.display()))
}
