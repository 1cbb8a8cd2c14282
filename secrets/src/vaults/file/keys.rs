//! The keys of age: those that open the file, and those for which it is written.

use std::str::FromStr;

use age::x25519::{self, Identity};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::vaults::VaultError;

/// `age1...`: for whom the vault is written, as the configuration file spells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Recipient(pub(super) x25519::Recipient);

impl TryFrom<String> for Recipient {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            "this is no recipient of age: write `age1...`, as `nightporter secrets key` and `age-keygen` print it";
        x25519::Recipient::from_str(text.trim()).map(Self).map_err(|_| wrong.to_owned())
    }
}

/// A new key: what opens, and for whom it is to be written.
pub fn new_key() -> (SecretString, String) {
    let key = Identity::generate();
    let recipient = key.to_public().to_string();
    (key.to_string().expose_secret().into(), recipient)
}

/// Keys as `age-keygen` writes them: one in each line, and comments. The error holds none.
pub fn own_keys(text: &SecretString) -> Result<Vec<Identity>, String> {
    let lines = text.expose_secret().lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    // The parser's own words may quote the key.
    let keys = lines.map(|line| Identity::from_str(line).map_err(|_| "its key is no `AGE-SECRET-KEY-1...`".to_owned()));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err("its key is empty".to_owned()) } else { Ok(keys) }
}

/// That the vault is written for us, and for somebody whose key is not ours: else the loss of this machine is the loss of
/// every secret in it.
pub(super) fn second_copy(keys: &[Identity], recipients: &[Recipient]) -> Result<(), VaultError> {
    let ours = |recipient: &Recipient| keys.iter().any(|key| key.to_public() == recipient.0);
    if !recipients.iter().any(ours) {
        return Err(VaultError::Refused(
            "its key opens nothing that is written for its recipients: add the key's own `age1...` to them".to_owned(),
        ));
    }
    if recipients.iter().all(ours) {
        return Err(VaultError::Refused(
            "its key has no second copy: add a recipient whose key lies elsewhere".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient(key: &Identity) -> Recipient {
        Recipient(key.to_public())
    }

    #[test]
    fn a_key_is_read_with_its_comments_and_a_wrong_one_is_not_quoted() {
        let (key, public) = new_key();
        let text = format!("# made today\n# public key: {public}\n{}\n", key.expose_secret());
        assert_eq!(own_keys(&text.into()).unwrap()[0].to_public().to_string(), public);
        let wrong = own_keys(&"AGE-SECRET-KEY-1HUNTER2".into()).err().unwrap();
        assert!(!wrong.contains("HUNTER2"), "{wrong}");
        assert!(own_keys(&"# nothing\n".into()).is_err());
    }

    #[test]
    fn a_second_copy_is_a_recipient_whose_key_is_not_here() {
        let [ours, also_ours, theirs] = [(); 3].map(|()| Identity::generate());
        let here = [ours.clone(), also_ours.clone()];
        assert!(second_copy(&here, &[recipient(&ours), recipient(&theirs)]).is_ok());
        let alone = second_copy(&here, &[recipient(&ours), recipient(&also_ours)]).unwrap_err().to_string();
        assert!(alone.contains("no second copy"), "{alone}");
        let locked_out = second_copy(&here, &[recipient(&theirs)]).unwrap_err().to_string();
        assert!(locked_out.contains("opens nothing"), "{locked_out}");
    }
}
