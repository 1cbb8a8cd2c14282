//! The application: a shop that uses Prisma, with users, sessions and audit logs, its migrations, and the life in it.

use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::patience::wait_for;

/// Sessions are kept so long, audit logs so long: the retention of the configuration.
pub(crate) const SESSIONS_KEPT: TimeDelta = TimeDelta::days(30);
pub(crate) const LOGS_KEPT: TimeDelta = TimeDelta::days(90);

/// What `prisma migrate dev` would have made of the first schema.
pub(crate) const FIRST_MIGRATION: (&str, &str) = (
    "20260105090000_init/migration.sql",
    r#"
-- CreateTable
CREATE TABLE "users" (
    "id" TEXT NOT NULL,
    "email" TEXT NOT NULL,
    "name" TEXT,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "users_pkey" PRIMARY KEY ("id")
);
-- CreateTable
CREATE TABLE "sessions" (
    "id" TEXT NOT NULL,
    "token" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "expires_at" TIMESTAMP(3) NOT NULL,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "sessions_pkey" PRIMARY KEY ("id")
);
-- CreateTable
CREATE TABLE "audit_logs" (
    "id" BIGSERIAL NOT NULL,
    "user_id" TEXT,
    "action" TEXT NOT NULL,
    "details" JSONB NOT NULL,
    "legal_hold" BOOLEAN NOT NULL DEFAULT false,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "audit_logs_pkey" PRIMARY KEY ("id")
);
-- CreateIndex
CREATE UNIQUE INDEX "users_email_key" ON "users"("email");
-- CreateIndex
CREATE INDEX "sessions_user_id_idx" ON "sessions"("user_id");
-- AddForeignKey
ALTER TABLE "sessions" ADD CONSTRAINT "sessions_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "users"("id") ON DELETE CASCADE ON UPDATE CASCADE;
-- AddForeignKey
ALTER TABLE "audit_logs" ADD CONSTRAINT "audit_logs_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "users"("id") ON DELETE SET NULL ON UPDATE CASCADE;
"#,
);

/// The lock file of Prisma's folder.
pub(crate) const LOCK: (&str, &str) = ("migration_lock.toml", "provider = \"postgresql\"\n");

/// The first deploy's migrations: two, that harm nobody.
pub(crate) const GOOD_MIGRATIONS: [(&str, &str); 2] = [
    ("20261201080000_user_country/migration.sql", "ALTER TABLE \"users\" ADD COLUMN \"country\" TEXT;\n"),
    (
        "20261201080100_orders/migration.sql",
        "CREATE TABLE \"orders\" (\n    \"id\" BIGSERIAL NOT NULL,\n    \"user_id\" TEXT NOT NULL REFERENCES \"users\"(\"id\"),\n    \
         CONSTRAINT \"orders_pkey\" PRIMARY KEY (\"id\")\n);\n",
    ),
];

/// The second deploy's, whose first form fails on data that the developer's own database did not have.
pub(crate) const UNIQUE_NAMES: &str = "20261203080000_unique_names";
pub(crate) const BAD_SQL: &str = "CREATE UNIQUE INDEX \"users_name_key\" ON \"users\"(\"name\");\n";
pub(crate) const MENDED_SQL: &str = "UPDATE \"users\" SET \"name\" = \"name\" || ' ' || \"id\";\n\
     CREATE UNIQUE INDEX \"users_name_key\" ON \"users\"(\"name\");\n";

/// The password that the shop begins with.
const FIRST_PASSWORD: &str = "the-first-password-of-the-shop";

/// Rounds of rows from here on came while the day went on.
const NEW: i64 = 9000;

/// The shop's database.
pub(crate) struct Shop {
    /// A superuser's address: what the shop itself does is done as one that may.
    pub(crate) url: String,
    /// What the names of its roles begin with.
    pub(crate) role: String,
    /// Rows that came since, by table.
    pub(crate) sessions_since: i64,
    pub(crate) logs_since: i64,
}

/// What is in its tables.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) users: i64,
    pub(crate) sessions: i64,
    pub(crate) audit_logs: i64,
    pub(crate) on_hold: i64,
}

impl Shop {
    /// An empty database on the server, with the two roles that the shop signs in as in turn.
    pub(crate) async fn open() -> Result<Self> {
        let url = tests::postgres::fresh_database().await;
        let role = url.rsplit('/').next().unwrap_or_default().to_owned();
        let shop = Self { url, role, sessions_since: 0, logs_since: 0 };
        let role = &shop.role;
        shop.run(&format!(
            "create role {role} nologin;
             create role {role}_a login in role {role} password '{FIRST_PASSWORD}';
             create role {role}_b nologin in role {role};
             alter default privileges grant select, insert, update, delete on tables to {role};"
        ))
        .await?;
        shop.ask_for_passwords().await?;
        Ok(shop)
    }

    /// Has the server ask the shop's roles for their passwords; others are believed, as in all tests.
    async fn ask_for_passwords(&self) -> Result<()> {
        let question = "select current_setting('hba_file'), pg_read_file(current_setting('hba_file'))";
        let (file, rules): (String, String) = sqlx::query_as(question).fetch_one(&mut self.connect().await?).await?;
        let role = &self.role;
        let rules = format!("host all {role}_a,{role}_b 127.0.0.1/32 scram-sha-256\n{rules}");
        // Without empty lines, which would be written in quotes.
        self.run(&format!(
            "copy (select * from unnest(string_to_array($rules${rules}$rules$, e'\\n')) line where line <> '')
               to '{file}' (format csv, quote e'\\x01', delimiter e'\\x02');
             select pg_reload_conf();"
        ))
        .await?;
        let wrong = self.address_of('a', "wrong");
        wait_for("the server asks for passwords", Duration::from_mins(1), async || {
            Ok(PgConnection::connect(&wrong).await.is_err().then_some(()))
        })
        .await
    }

    /// Where the shop signs in as one of its roles.
    fn address_of(&self, which: char, password: &str) -> String {
        self.url.replace("//postgres@", &format!("//{}_{which}:{password}@", self.role))
    }

    /// Where it signs in at first.
    pub(crate) fn first_address(&self) -> String {
        self.address_of('a', FIRST_PASSWORD)
    }

    pub(crate) async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }

    pub(crate) async fn run(&self, sql: &str) -> Result<u64> {
        let statements = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        Ok(self.connect().await?.execute(statements).await?.rows_affected())
    }

    pub(crate) async fn number(&self, question: &str) -> Result<i64> {
        Ok(sqlx::query_scalar(AssertSqlSafe(question.to_owned())).fetch_one(&mut self.connect().await?).await?)
    }

    /// The database's size in bytes.
    pub(crate) async fn size(&self) -> Result<i64> {
        self.number("select pg_database_size(current_database())").await
    }

    /// Fills the tables until the database is this large: a few users, a history of sessions and logs as it would be had
    /// nothing ever been deleted.
    pub(crate) async fn fill(&self, bytes: i64, now: DateTime<Utc>) -> Result<Counts> {
        let mut round = 0;
        while self.size().await? < bytes {
            let left = bytes - self.size().await?;
            // A user, ten sessions and twenty logs take some nine kilobytes with their indexes.
            let users = (left / 9_000).clamp(20, 10_000);
            self.fill_round(round, users, now).await?;
            round += 1;
            ensure!(round < 1_000, "the database does not grow");
        }
        self.run("analyze").await?;
        self.counts().await
    }

    async fn fill_round(&self, round: i64, users: i64, now: DateTime<Utc>) -> Result<()> {
        let at = now.naive_utc();
        // The data of before has names that occur often; who comes later is asked for one of their own.
        let name = if round < NEW { "'User ' || n % 1000".to_owned() } else { format!("'User {round}-' || n") };
        self.run(&format!(
            "insert into users select 'c{round:04}' || lpad(to_hex(n), 8, '0') || substr(md5(n::text), 1, 12),
                    'user{round}-' || n || '@example.com', {name}, timestamp '{at}' - n % 400 * interval '1 day'
               from generate_series(1, {users}) n;
             insert into sessions select 's{round:04}' || lpad(to_hex(n), 8, '0') || substr(md5(n::text), 1, 12),
                    md5(n || 'a{round}') || md5(n || 'b{round}'),
                    'c{round:04}' || lpad(to_hex(1 + n % {users}), 8, '0') || substr(md5((1 + n % {users})::text), 1, 12),
                    timestamp '{at}', timestamp '{at}' - n % 960 * interval '1 hour'
               from generate_series(1, {users} * 10) n;
             insert into audit_logs (user_id, action, details, legal_hold, created_at)
             select 'c{round:04}' || lpad(to_hex(1 + n % {users}), 8, '0') || substr(md5((1 + n % {users})::text), 1, 12),
                    (array['sign_in','sign_out','order.create','order.pay','profile.update'])[1 + n % 5],
                    jsonb_build_object('ip', '10.' || n % 256 || '.' || n / 256 % 256 || '.7', 'agent', 'Mozilla/5.0 ' || md5(n::text),
                                       'request', md5(n || 'r{round}'), 'path', '/api/orders/' || n),
                    n % 1000 = 7, timestamp '{at}' - n % 2880 * interval '1 hour'
               from generate_series(1, {users} * 20) n"
        ))
        .await?;
        Ok(())
    }

    /// A day in its life: people sign up, sign in, and are logged.
    pub(crate) async fn live(&mut self, day: i64, now: DateTime<Utc>) -> Result<()> {
        const USERS: i64 = 20;
        self.fill_round(NEW + day, USERS, now).await?;
        // All of a round's rows are as young as those that are never due.
        self.run(&format!(
            "update sessions set created_at = timestamp '{0}' where id like 's{1}%';
             update audit_logs set created_at = timestamp '{0}' where user_id like 'c{1}%'",
            now.naive_utc(),
            NEW + day
        ))
        .await?;
        self.sessions_since += USERS * 10;
        self.logs_since += USERS * 20;
        Ok(())
    }

    pub(crate) async fn counts(&self) -> Result<Counts> {
        Ok(Counts {
            users: self.number("select count(*) from users").await?,
            sessions: self.number("select count(*) from sessions").await?,
            audit_logs: self.number("select count(*) from audit_logs").await?,
            on_hold: self.number("select count(*) from audit_logs where legal_hold").await?,
        })
    }

    /// How many of a table's rows are not older than this.
    pub(crate) async fn younger_than(&self, table: &str, moment: DateTime<Utc>) -> Result<i64> {
        let moment = moment.naive_utc();
        self.number(&format!("select count(*) from {table} where created_at >= timestamp '{moment}'")).await
    }
}
