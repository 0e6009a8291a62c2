//! Connection tokens: JSON Web Tokens (RFC 7519) in which an application says who a client is, before it is let in.
//!
//! The algorithm is the key's and never the token's choice (RFC 8725, 3.1).

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::command::List;
use crate::id::{Group, Uid};
use crate::session::Session;

/// Clocks may differ so much, seconds.
const LEEWAY: u64 = 30;

/// The object identifier of the curve P-256 in DER (RFC 5480, 2.1.1.1).
const P_256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// How long the secret of HS256 has to be (RFC 7518, 3.2).
const SECRET_BYTES: usize = 32;

/// How long an RSA key may be.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// What a token gives the client that brings it.
#[derive(Debug, Default, Deserialize)]
pub struct Grant {
    /// Its uid.
    #[serde(rename = "sub", default, deserialize_with = "present")]
    pub uid: Option<Uid>,
    /// Its groups.
    #[serde(default, deserialize_with = "present")]
    pub groups: Option<List<Group>>,
    /// Its session.
    #[serde(default, deserialize_with = "present")]
    pub session: Option<Session>,
}

/// A claim that is there is no null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Why somebody is not let in; in words for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A token is needed.
    #[error("a token is needed: Authorization: Bearer …, or ?token=")]
    Missing,
    /// It was good.
    #[error("the token has expired")]
    Expired,
    /// It will be good.
    #[error("the token is not valid yet")]
    TooEarly,
    /// It is not signed with our key and its algorithm, or no token at all.
    #[error("the token is not signed as this node wants it")]
    Foreign,
    /// A claim is not what it has to be.
    #[error("the token does not fit: {0}")]
    Unfit(String),
}

/// Reads tokens.
#[derive(Clone)]
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
    is_needed: bool,
    is_weak: bool,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({:?})", self.validation.algorithms)
    }
}

impl Tokens {
    /// Signed with a secret: HS256.
    pub fn of_secret(secret: &[u8]) -> Self {
        Self { is_weak: secret.len() < SECRET_BYTES, ..Self::new(Algorithm::HS256, DecodingKey::from_secret(secret)) }
    }

    /// Signed with the private key to this public one, in PEM: RS256, ES256 or `EdDSA`, as its kind is. None for what is none.
    pub fn of_public_key(pem: &str) -> Option<Self> {
        // The library would take a private key for a public one, and refuse every token.
        if pem.contains("PRIVATE KEY") {
            return None;
        }
        let bytes = pem.as_bytes();
        if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
            return is_strong(&key).then(|| Self::new(Algorithm::RS256, key));
        }
        if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
            return Some(Self::new(Algorithm::EdDSA, key));
        }
        let key = DecodingKey::from_ec_pem(bytes).ok()?;
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(bytes).ok()?;
        let is_p_256 = spki.windows(P_256.len()).any(|part| part == P_256);
        is_p_256.then(|| Self::new(Algorithm::ES256, key))
    }

    fn new(algorithm: Algorithm, key: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        // Both are the application's affair, and so is whether its tokens end.
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self { key, validation, is_needed: false, is_weak: false }
    }

    /// Whoever brings none, or one without a uid, is not let in.
    #[must_use]
    pub fn needed(self) -> Self {
        Self { is_needed: true, ..self }
    }

    /// Whether nobody is let in without one.
    pub fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// Whether the secret is shorter than 32 bytes: whoever has one token can try secrets until one fits, and sign for any
    /// uid.
    pub fn is_weak(&self) -> bool {
        self.is_weak
    }

    /// What a client gets by the token that it brings, if it does.
    pub fn grant(&self, token: Option<&str>) -> Result<Option<Grant>, TokenError> {
        let Some(token) = token else {
            return if self.is_needed { Err(TokenError::Missing) } else { Ok(None) };
        };
        let read =
            decode::<Box<RawValue>>(token, &self.key, &self.validation).map_err(|error| match error.into_kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::ImmatureSignature => TokenError::TooEarly,
                ErrorKind::InvalidClaimFormat(claim) => TokenError::Unfit(format!("{claim}: takes unix seconds")),
                _ => TokenError::Foreign,
            })?;
        // What has to be understood is not (RFC 7515, 4.1.11).
        if read.header.crit.is_some() {
            return Err(TokenError::Unfit("crit is not supported".to_owned()));
        }
        let grant: Grant =
            serde_json::from_str(read.claims.get()).map_err(|error| TokenError::Unfit(crate::json::words(&error)))?;
        if self.is_needed && grant.uid.is_none() {
            return Err(TokenError::Unfit("sub is missing".to_owned()));
        }
        Ok(Some(grant))
    }
}

/// Whether an RSA key is one that signatures are verified with (RFC 7518, 3.3); any other would refuse every token.
fn is_strong(key: &DecodingKey) -> bool {
    let key = key.try_get_as_bytes().ok().and_then(|der| rsa::PublicKey::from_der(der).ok());
    let key = key.and_then(|key| key.as_der().ok());
    key.and_then(|key| rsa::PublicEncryptingKey::from_der(key.as_ref()).ok())
        .is_some_and(|key| RSA_BITS.contains(&key.key_size_bits()))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"the application's secret, which is long enough";

    fn signed(claims: &Value) -> String {
        encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    fn grant(claims: &Value) -> Result<Grant, TokenError> {
        Tokens::of_secret(SECRET).grant(Some(&signed(claims))).map(Option::unwrap)
    }

    #[test]
    fn a_token_gives_uid_groups_and_session() {
        let given = grant(&json!({"sub": "u", "groups": ["b", "a", "a"], "session": {"a": [1, 2.50]}})).unwrap();
        assert_eq!(given.uid.unwrap().as_str(), "u");
        assert_eq!(given.groups.unwrap().0.iter().map(Group::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(given.session.unwrap().as_str(), r#"{"a":[1,2.5]}"#);
        // As everywhere, a number is a uid; what we do not know is the application's.
        let given = grant(&json!({"sub": 42, "aud": "chat", "iss": "app", "name": "n"})).unwrap();
        assert_eq!((given.uid.unwrap().as_str(), given.groups.is_none(), given.session.is_none()), ("42", true, true));
    }

    #[test]
    fn a_claim_of_a_wrong_type_is_refused_by_name() {
        for (claims, word) in [
            (json!({"sub": ""}), "256 bytes"),
            (json!({"sub": null}), "256 bytes"),
            (json!({"sub": "x".repeat(257)}), "256 bytes"),
            (json!({"groups": "g"}), "array"),
            (json!({"groups": [""]}), "256 bytes"),
            (json!({"groups": null}), "array"),
            (json!({"session": "text"}), "object or array"),
            (json!({"session": null}), "object or array"),
            (json!({"exp": "tomorrow"}), "exp"),
            (json!({"exp": null}), "exp"),
            (json!({"exp": -1}), "exp"),
            (json!({"nbf": "yesterday"}), "nbf"),
        ] {
            let Err(TokenError::Unfit(words)) = grant(&claims) else { panic!("{claims}") };
            assert!(words.contains(word), "{claims}: {words}");
        }
        // The library's own look at a claim ends there.
        for claims in [json!([1]), json!({"sub": ["u"]}), json!({"sub": {}})] {
            assert_eq!(grant(&claims).unwrap_err(), TokenError::Foreign, "{claims}");
        }
    }

    #[test]
    fn times_have_thirty_seconds_of_leeway() {
        let now = get_current_timestamp();
        assert!(grant(&json!({"exp": now - 25, "nbf": now + 25})).is_ok());
        assert!(grant(&json!({"exp": now as f64 + 0.5})).is_ok());
        assert_eq!(grant(&json!({"exp": now - 35})).unwrap_err(), TokenError::Expired);
        assert_eq!(grant(&json!({"nbf": now + 35})).unwrap_err(), TokenError::TooEarly);
    }

    #[test]
    fn where_one_is_needed_it_says_who_comes() {
        let tokens = Tokens::of_secret(SECRET);
        assert!(tokens.grant(None).unwrap().is_none());
        assert!(tokens.grant(Some(&signed(&json!({})))).unwrap().unwrap().uid.is_none());
        let tokens = tokens.needed();
        assert_eq!(tokens.grant(None).unwrap_err(), TokenError::Missing);
        assert_eq!(
            tokens.grant(Some(&signed(&json!({})))).unwrap_err(),
            TokenError::Unfit("sub is missing".to_owned())
        );
        assert!(tokens.grant(Some(&signed(&json!({"sub": "u"})))).is_ok());
    }

    #[test]
    fn the_key_says_the_algorithm() {
        let claims = json!({"sub": "u"});
        let keys = [
            (&PKCS_RSA_SHA256, Algorithm::RS256),
            (&PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&PKCS_ED25519, Algorithm::EdDSA),
        ];
        let pairs = keys.map(|(kind, algorithm)| (KeyPair::generate_for(kind).unwrap(), algorithm));
        for (pair, algorithm) in &pairs {
            let tokens = Tokens::of_public_key(&pair.public_key_pem()).unwrap();
            for (other, theirs) in &pairs {
                let pem = other.serialize_pem();
                let key = match theirs {
                    Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
                    Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
                    _ => EncodingKey::from_ed_pem(pem.as_bytes()),
                };
                let token = encode(&Header::new(*theirs), &claims, &key.unwrap()).unwrap();
                assert_eq!(tokens.grant(Some(&token)).is_ok(), algorithm == theirs, "{algorithm:?} {theirs:?}");
            }
            // The public key is no secret: as one it signs nothing (RFC 8725, 2.1).
            let secret = EncodingKey::from_secret(pair.public_key_pem().as_bytes());
            let token = encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap();
            assert_eq!(tokens.grant(Some(&token)).unwrap_err(), TokenError::Foreign);
        }
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            let token = encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(SECRET)).unwrap();
            assert_eq!(Tokens::of_secret(SECRET).grant(Some(&token)).unwrap_err(), TokenError::Foreign);
        }
    }

    #[test]
    fn what_is_not_signed_is_foreign() {
        let good = signed(&json!({"sub": "u"}));
        let (head, signature) = good.rsplit_once('.').unwrap();
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0.";
        for token in [
            "",
            "x",
            "a.b.c",
            unsigned,
            head,
            &format!("{head}."),
            &format!("{head}.x{signature}"),
            &format!("{good}.x"),
        ] {
            assert_eq!(Tokens::of_secret(SECRET).grant(Some(token)).unwrap_err(), TokenError::Foreign, "{token}");
        }
        let header = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::HS256) };
        let critical = encode(&header, &json!({"sub": "u"}), &EncodingKey::from_secret(SECRET)).unwrap();
        assert!(matches!(Tokens::of_secret(SECRET).grant(Some(&critical)), Err(TokenError::Unfit(_))));
    }

    #[test]
    fn what_is_no_public_key_of_ours_is_refused() {
        let p_256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let p_384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        // 1,024 bits, in both forms of PEM.
        let weak = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDPdOz9Y0H9Bq/Rht2TyhZlcpri
OGPQLBhJqAcoki1+xGCX9M493qW5/sj5WV4+YCNGeJVNkyPez3bwlw0dNaGhcyif
3tmT6wZSfXGXtspw3JouaND1ydzCw5asjCC8o1tqkb87AyQRQbw2kifM4h1NGnlB
ztIFIt+XKydKAaFWNQIDAQAB
-----END PUBLIC KEY-----
";
        let weak_too = "-----BEGIN RSA PUBLIC KEY-----
MIGJAoGBAK6uzBWbUgUqkn5AzXpKGM0AaUQgavBtIqnd6ZT03/aCQQweKN5kUfjj
y+Dn5paakfw2nFwdk0j+vZ/IZcYvSrllkYAF9J9e+WyusptyHhWgbiBZTsDzrpAN
o6Si/xB6VY36hYMA0MwV/vKxw6gX8Pidj1759QRftMS7bGWSH2iLAgMBAAE=
-----END RSA PUBLIC KEY-----
";
        for pem in ["", "secret", &p_256.serialize_pem(), &p_384.public_key_pem(), weak, weak_too] {
            assert!(Tokens::of_public_key(pem).is_none(), "{pem}");
        }
    }
}
