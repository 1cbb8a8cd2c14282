//! Cuts secrets out of what others say: programs and servers repeat what they were given.

use secrets::{ExposeSecret, SecretString};

/// A part of a secret that is shorter is no secret by itself (`Bearer`, a user's name).
const SHORTEST_PART: usize = 8;

/// Secrets, longest first.
#[derive(Default)]
pub(crate) struct Mask(Vec<SecretString>);

impl Mask {
    /// Cuts out this secret from now on: whole, as JSON spells it, and each longer word of it.
    pub(crate) fn add(&mut self, secret: &SecretString) {
        let text = secret.expose_secret();
        let in_json = serde_json::Value::from(text).to_string();
        let words = text.split_whitespace().filter(|word| word.len() >= SHORTEST_PART);
        let forms = [text, in_json.trim_matches('"')].into_iter().chain(words);
        self.0.extend(forms.filter(|form| !form.is_empty()).map(SecretString::from));
        self.0.sort_by_key(|form| std::cmp::Reverse(form.expose_secret().len()));
    }

    /// How long the longest of them is, in bytes.
    pub(crate) fn longest(&self) -> usize {
        self.0.first().map_or(0, |secret| secret.expose_secret().len())
    }

    /// The text without the secrets.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "…"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_cut_out_whole_by_its_words_and_as_json_spells_it() {
        let mut mask = Mask::default();
        mask.add(&"Bearer abcdefgh12".into());
        mask.add(&"pass\"word\nline".into());
        assert_eq!(mask.apply("got Bearer abcdefgh12 and abcdefgh12"), "got … and …");
        assert_eq!(mask.apply(r#"{"p": "pass\"word\nline"}"#), r#"{"p": "…"}"#);
        assert_eq!(mask.apply("Bearer of news"), "Bearer of news");
        assert_eq!(Mask::default().apply("x"), "x");
    }

    #[test]
    fn an_empty_secret_cuts_nothing() {
        let mut mask = Mask::default();
        mask.add(&"".into());
        assert_eq!(mask.apply("as it was"), "as it was");
    }
}
