//! `backups`: what lies in the stores. Reads them directly, without the ledger.
