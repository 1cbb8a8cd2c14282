//! Signatures over raw bytes, with several active secrets, compared in constant time.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use secrets::{ExposeSecret, SecretString};
use sha1::Sha1;
use sha2::Sha256;

use crate::rejection::Rejection;

/// A signature that was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The place, among the configured secrets, of the one that made it.
    pub key: usize,
}

/// Base64 as senders write it, with or without padding.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The algorithms that senders use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Algorithm {
    Sha1,
    Sha256,
}

impl Algorithm {
    /// The signature of a message that comes in parts.
    pub(crate) fn sign(self, key: &[u8], message: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Sha1 => mac::<Hmac<Sha1>>(key, message).map(|mac| mac.finalize().into_bytes().to_vec()),
            Self::Sha256 => mac::<Hmac<Sha256>>(key, message).map(|mac| mac.finalize().into_bytes().to_vec()),
        }
        .unwrap_or_default()
    }

    /// Whether any of the signatures is the message's. In constant time for each.
    fn matches(self, key: &[u8], message: &[&[u8]], signatures: &[Vec<u8>]) -> bool {
        match self {
            Self::Sha1 => mac::<Hmac<Sha1>>(key, message).is_some_and(|mac| any_matches(&mac, signatures)),
            Self::Sha256 => mac::<Hmac<Sha256>>(key, message).is_some_and(|mac| any_matches(&mac, signatures)),
        }
    }
}

fn any_matches<M: Mac + Clone>(mac: &M, signatures: &[Vec<u8>]) -> bool {
    signatures.iter().any(|signature| mac.clone().verify_slice(signature).is_ok())
}

fn mac<M: Mac + KeyInit>(key: &[u8], message: &[&[u8]]) -> Option<M> {
    let mut mac = <M as KeyInit>::new_from_slice(key).ok()?;
    for part in message {
        mac.update(part);
    }
    Some(mac)
}

/// Looks for the secret that made one of the signatures. An empty secret is none: anybody can sign with it.
pub(crate) fn verify(
    algorithm: Algorithm,
    message: &[&[u8]],
    signatures: &[Vec<u8>],
    keys: impl Iterator<Item = Option<Vec<u8>>>,
) -> Result<Verified, Rejection> {
    let mut usable = 0;
    for (place, key) in keys.enumerate() {
        let Some(key) = key.filter(|key| !key.is_empty()) else { continue };
        usable += 1;
        if algorithm.matches(&key, message, signatures) {
            return Ok(Verified { key: place });
        }
    }
    Err(if usable == 0 { Rejection::NoUsableSecret } else { Rejection::Mismatch })
}

/// The key that a secret is, byte for byte.
pub(crate) fn plain_key(secret: &SecretString) -> Vec<u8> {
    secret.expose_secret().as_bytes().to_vec()
}

/// The key in a `whsec_<base64>` secret.
pub(crate) fn whsec_key(secret: &SecretString) -> Option<Vec<u8>> {
    let text = secret.expose_secret();
    BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify_with(keys: &[&str], signature: &[u8]) -> Result<Verified, Rejection> {
        let keys = keys.iter().map(|key| Some(key.as_bytes().to_vec()));
        verify(Algorithm::Sha256, &[b"body"], &[signature.to_vec()], keys)
    }

    #[test]
    fn the_secret_that_made_the_signature_is_named_by_its_place() {
        let signature = Algorithm::Sha256.sign(b"old", &[b"bo", b"dy"]);
        assert_eq!(verify_with(&["new", "old"], &signature), Ok(Verified { key: 1 }));
        assert_eq!(verify_with(&["new"], &signature), Err(Rejection::Mismatch));
        assert_eq!(verify_with(&["old"], &signature[..31]), Err(Rejection::Mismatch));
        assert_eq!(verify_with(&["old"], b""), Err(Rejection::Mismatch));
    }

    #[test]
    fn an_empty_secret_verifies_nothing() {
        let signature = Algorithm::Sha256.sign(b"", &[b"body"]);
        assert_eq!(verify_with(&["", ""], &signature), Err(Rejection::NoUsableSecret));
        assert_eq!(verify_with(&["", "x"], &signature), Err(Rejection::Mismatch));
        assert_eq!(verify_with(&[], &signature), Err(Rejection::NoUsableSecret));
    }
}
