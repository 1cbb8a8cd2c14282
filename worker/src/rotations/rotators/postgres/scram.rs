//! SCRAM verifiers (RFC 5802, RFC 7677), as `PostgreSQL` stores them: made here, so that the server is never told the password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrets::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// As the server's own default. The password is random and long: more rounds would protect nothing.
const ROUNDS: u32 = 4096;

/// What the server stores for a password of ASCII characters. The salt comes of the password and the rotation's token: each
/// attempt writes the same bytes, which poolers that pass verifiers on rely on.
pub(super) fn verifier(password: &SecretString, token: &str) -> SecretString {
    let salt = mac(password.expose_secret().as_bytes(), &[b"nightporter salt ", token.as_bytes()]);
    with_salt(password.expose_secret(), &salt[..16], ROUNDS).into()
}

fn with_salt(password: &str, salt: &[u8], rounds: u32) -> String {
    let salted = salted(password.as_bytes(), salt, rounds);
    let stored_key = Sha256::digest(mac(&salted, &[b"Client Key"]));
    let server_key = mac(&salted, &[b"Server Key"]);
    let [salt, stored_key, server_key] = [salt, stored_key.as_slice(), &server_key].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${rounds}:{salt}${stored_key}:{server_key}")
}

/// PBKDF2 with HMAC-SHA-256, one block.
fn salted(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut block = mac(password, &[salt, &1_u32.to_be_bytes()]);
    let mut sum = block;
    for _ in 1..rounds {
        block = mac(password, &[&block]);
        sum.iter_mut().zip(block).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { unreachable!("HMAC takes keys of any length") };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that a client and a server of RFC 7677's example agree on.
    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salted(b"pencil", &salt, 4096);
        let auth = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let server_key = mac(&salted, &[b"Server Key"]);
        assert_eq!(STANDARD.encode(mac(&server_key, &[auth])), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let client_key = mac(&salted, &[b"Client Key"]);
        let stored_key = Sha256::digest(client_key);
        let mut proof = mac(&stored_key, &[auth]);
        proof.iter_mut().zip(client_key).for_each(|(proof, key)| *proof ^= key);
        assert_eq!(STANDARD.encode(proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    }

    #[test]
    fn the_same_rotation_writes_the_same_bytes_and_another_one_others() {
        let password = SecretString::from("a password");
        let written = |token| verifier(&password, token).expose_secret().to_owned();
        assert_eq!(written("one"), written("one"));
        assert_ne!(written("one"), written("two"));
        assert!(written("one").starts_with("SCRAM-SHA-256$4096:") && !written("one").contains("a password"));
    }
}
