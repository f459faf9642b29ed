//! Tokens that must not be good: each refused for its reason, and random changes to good ones.

use rand::{Rng, SeedableRng, rngs::StdRng};
use ring::hmac;
use serde_json::{Value, json};

use super::{NOW, keys, with};
use crate::trust::{
    Refusal,
    test_tokens::{ISSUER, SUBJECT, Signer, claims, encoded, trust_file},
    token::{Finding, LEEWAY, MAX_BYTES, check},
};

/// Name, token, finding.
type Case = (&'static str, String, Finding);

fn hostile_headers(rsa: &Signer, p256: &Signer) -> Vec<Case> {
    use Refusal::{Algorithm, Malformed, Signature};
    let body = claims(NOW).to_string();
    let is = Finding::Refused;
    let signed = |header: &str| rsa.compact(header, &body);
    let own_secret = |alg: &str, secret: &[u8]| {
        let head = json!({"alg": alg, "kid": "r"}).to_string();
        let message = format!("{}.{}", encoded(head.as_bytes()), encoded(body.as_bytes()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
        format!("{message}.{}", encoded(tag.as_ref()))
    };
    let unsigned = |alg: &str| {
        let head = json!({"alg": alg, "kid": "r"}).to_string();
        format!("{}.{}.", encoded(head.as_bytes()), encoded(body.as_bytes()))
    };
    let n = rsa.jwk()["n"].as_str().unwrap().to_owned();
    let thief = Signer::p256("e");
    let extra = |name: &str, value: Value| {
        let mut head = rsa.header();
        head[name] = value;
        signed(&head.to_string())
    };
    let mut cases = vec![
        ("none, unsigned", unsigned("none"), is(Algorithm)),
        ("None, unsigned", unsigned("None"), is(Algorithm)),
        ("RS256, unsigned", unsigned("RS256"), is(Signature)),
        ("none, signed", signed(r#"{"alg":"none","kid":"r"}"#), is(Algorithm)),
        ("HS256 with the modulus as text", own_secret("HS256", n.as_bytes()), is(Algorithm)),
        ("HS256 with the key as JSON", own_secret("HS256", rsa.jwk().to_string().as_bytes()), is(Algorithm)),
        ("HS256 with nothing", own_secret("HS256", b""), is(Algorithm)),
        ("RS256 that is an HMAC", own_secret("RS256", n.as_bytes()), is(Signature)),
        (
            "ES256 by the name of an RSA key",
            p256.compact(r#"{"alg":"ES256","kid":"r"}"#, &body),
            is(Algorithm),
        ),
        ("RS256 by the name of an EC key", signed(r#"{"alg":"RS256","kid":"e"}"#), is(Algorithm)),
        ("another key of the same name", thief.token(&claims(NOW)), is(Signature)),
        ("no alg", signed(r#"{"kid":"r"}"#), is(Malformed)),
        ("alg null", signed(r#"{"alg":null,"kid":"r"}"#), is(Malformed)),
        ("alg a list", signed(r#"{"alg":["RS256"],"kid":"r"}"#), is(Malformed)),
        ("alg twice", signed(r#"{"alg":"none","alg":"RS256","kid":"r"}"#), is(Malformed)),
        ("no kid", signed(r#"{"alg":"RS256"}"#), is(Malformed)),
        ("kid empty", signed(r#"{"alg":"RS256","kid":""}"#), is(Malformed)),
        ("kid a number", signed(r#"{"alg":"RS256","kid":7}"#), is(Malformed)),
        ("kid twice", signed(r#"{"alg":"RS256","kid":"x","kid":"r"}"#), is(Malformed)),
        ("kid long", signed(&json!({"alg": "RS256", "kid": "r".repeat(257)}).to_string()), is(Malformed)),
        ("kid unknown", signed(r#"{"alg":"RS256","kid":"s"}"#), Finding::UnknownKey),
        ("kid a path", signed(r#"{"alg":"RS256","kid":"../../../dev/null"}"#), Finding::UnknownKey),
        ("kid in another case", signed(r#"{"alg":"RS256","kid":"R"}"#), Finding::UnknownKey),
        ("a critical extension", extra("crit", json!(["exp"])), is(Malformed)),
        ("an empty list of them", extra("crit", json!([])), is(Malformed)),
        ("an address of keys", extra("jku", json!("https://evil.example/jwks")), is(Malformed)),
        ("an address of certificates", extra("x5u", json!("https://evil.example/c")), is(Malformed)),
        ("certificates", extra("x5c", json!(["MIIB"])), is(Malformed)),
        ("a payload that is not base64", extra("b64", json!(false)), is(Malformed)),
        ("compressed", extra("zip", json!("DEF")), is(Malformed)),
        ("encrypted", extra("enc", json!("A256GCM")), is(Malformed)),
        ("of another type", extra("typ", json!("JWE")), is(Malformed)),
        ("a header that is a list", signed(r#"["RS256","r"]"#), is(Malformed)),
        ("a header that is two", signed(r#"{"alg":"RS256","kid":"r"}{}"#), is(Malformed)),
        (
            "a header with a byte order mark",
            signed("\u{feff}{\"alg\":\"RS256\",\"kid\":\"r\"}"),
            is(Malformed),
        ),
        ("a header that is empty", signed(""), is(Malformed)),
    ];
    let embedded = json!({"alg": "ES256", "kid": "e", "jwk": thief.jwk()}).to_string();
    cases.push(("a key of its own", thief.compact(&embedded, &body), is(Malformed)));
    for alg in ["HS384", "HS512", "RS384", "RS512", "PS256", "ES384", "ES512", "EdDSA", "rs256", "RS256 ", ""]
    {
        let head = json!({"alg": alg, "kid": "r"}).to_string();
        cases.push(("an algorithm that is not offered", signed(&head), is(Algorithm)));
    }
    cases
}

fn hostile_claims(rsa: &Signer) -> Vec<Case> {
    use Refusal::{Audience, Expired, Issuer, Malformed, NotYetValid, Subject};
    let of = |changes: Value| rsa.token(&with(changes));
    let is = Finding::Refused;
    let raw = |claims: &str| rsa.compact(&rsa.header().to_string(), claims);
    let spliced = |more: &str| raw(&claims(NOW).to_string().replacen('{', &format!("{{{more},"), 1));
    vec![
        ("another issuer", of(json!({"iss": "https://evil.example"})), is(Issuer)),
        ("the issuer with a slash", of(json!({"iss": format!("{ISSUER}/")})), is(Issuer)),
        ("no issuer", of(json!({"iss": null})), is(Malformed)),
        ("an issuer that is a list", of(json!({"iss": [ISSUER]})), is(Malformed)),
        ("issuer twice", spliced(r#""iss":"https://evil.example""#), is(Malformed)),
        ("the API server's audience", of(json!({"aud": [ISSUER]})), is(Audience)),
        ("an audience that begins alike", of(json!({"aud": "candela-data-plane.evil"})), is(Audience)),
        ("no audience", of(json!({"aud": null})), is(Malformed)),
        ("an empty audience", of(json!({"aud": []})), is(Audience)),
        ("a nested audience", of(json!({"aud": [["candela-data-plane"]]})), is(Malformed)),
        ("an audience that is an object", of(json!({"aud": {"candela-data-plane": 1}})), is(Malformed)),
        ("another account", of(json!({"sub": "system:serviceaccount:candela-system:default"})), is(Subject)),
        (
            "the account of another namespace",
            of(json!({"sub": "system:serviceaccount:evil:candela-gateway"})),
            is(Subject),
        ),
        ("an account that begins alike", of(json!({"sub": format!("{SUBJECT}-2")})), is(Subject)),
        ("the account with a NUL", of(json!({"sub": format!("{SUBJECT}\0")})), is(Subject)),
        ("no account", of(json!({"sub": null})), is(Malformed)),
        ("account twice", spliced(&format!(r#""sub":"{SUBJECT}""#)), is(Malformed)),
        ("expired", of(json!({"exp": NOW - LEEWAY})), is(Expired)),
        ("expired long ago", of(json!({"exp": 0})), is(Expired)),
        ("expired before 1970", of(json!({"exp": -1e300})), is(Expired)),
        ("no end", of(json!({"exp": null})), is(Malformed)),
        ("an end in words", of(json!({"exp": (NOW + 60).to_string()})), is(Malformed)),
        ("an end that is no number", raw(r#"{"exp":1e999}"#), is(Malformed)),
        ("not begun", of(json!({"nbf": NOW + LEEWAY + 1})), is(NotYetValid)),
        ("a beginning in words", of(json!({"nbf": "now"})), is(Malformed)),
        (
            "claims that are a list",
            raw(&json!([ISSUER, SUBJECT, "candela-data-plane", NOW + 60]).to_string()),
            is(Malformed),
        ),
        ("claims that are nothing", raw(""), is(Malformed)),
        ("claims nested deeply", raw(&"[".repeat(3000)), is(Malformed)),
        ("claims in no encoding", rsa.compact(&rsa.header().to_string(), "\u{0}\u{1}"), is(Malformed)),
        (
            "of an unknown key, and not for us",
            { rsa.compact(r#"{"alg":"RS256","kid":"s"}"#, &with(json!({"aud": "x"})).to_string()) },
            is(Audience),
        ),
    ]
}

fn hostile_texts(rsa: &Signer, p256: &Signer) -> Vec<Case> {
    use Refusal::{Malformed, Signature, TooLong};
    let is = Finding::Refused;
    let good = rsa.token(&claims(NOW));
    let other = rsa.token(&with(json!({"jti": "2"})));
    let parts: Vec<&str> = good.split('.').collect();
    let of_other: Vec<&str> = other.split('.').collect();
    let p256_parts = p256.token(&claims(NOW));
    let (p256_signed, _) = p256_parts.rsplit_once('.').unwrap();
    let flipped = {
        let mut signature = rsa.sign(format!("{}.{}", parts[0], parts[1]).as_bytes());
        signature[100] ^= 1;
        encoded(&signature)
    };
    // 256 bytes leave four bits over in the last character.
    let respelled = {
        let (rest, last) = good.split_at(good.len() - 1);
        let next = char::from(last.as_bytes()[0] + 1);
        format!("{rest}{next}")
    };
    vec![
        ("nothing", String::new(), is(Malformed)),
        ("a word", "token".to_owned(), is(Malformed)),
        ("an API key", "sk-0123456789abcdef".to_owned(), is(Malformed)),
        ("dots", "..".to_owned(), is(Malformed)),
        ("two parts", format!("{}.{}", parts[0], parts[1]), is(Malformed)),
        ("four parts", format!("{good}.{}", parts[2]), is(Malformed)),
        ("five parts", format!("{good}.{}.{}", parts[1], parts[2]), is(Malformed)),
        (
            "the other form",
            json!({"payload": parts[1], "protected": parts[0], "signature": parts[2]}).to_string(),
            is(Malformed),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), is(Signature)),
        ("a bit of the signature", format!("{}.{}.{flipped}", parts[0], parts[1]), is(Signature)),
        ("a signature cut short", format!("{}.{}.{}", parts[0], parts[1], &parts[2][..340]), is(Signature)),
        ("a signature twice", format!("{good}{}", parts[2]), is(Signature)),
        ("claims of another token", format!("{}.{}.{}", parts[0], of_other[1], parts[2]), is(Signature)),
        ("zeros for r and s", format!("{p256_signed}.{}", encoded(&[0; 64])), is(Signature)),
        (
            "a signature in DER",
            format!("{p256_signed}.{}", encoded(&[0x30, 6, 2, 1, 1, 2, 1, 1])),
            is(Signature),
        ),
        ("padding", format!("{good}="), is(Malformed)),
        ("the other alphabet", good.replacen('.', "+.", 1), is(Malformed)),
        ("another spelling of the same bits", respelled, is(Malformed)),
        ("a space within", good.replacen('.', " .", 1), is(Malformed)),
        ("a space behind", format!("{good} "), is(Malformed)),
        ("a line behind", format!("{good}\n"), is(Malformed)),
        ("too long", rsa.token(&with(json!({"more": "x".repeat(MAX_BYTES)}))), is(TooLong)),
        ("a million dots", ".".repeat(1 << 20), is(TooLong)),
    ]
}

#[test]
fn hostile_tokens_are_refused_each_for_its_reason() {
    let (rsa, p256) = (Signer::rsa("r"), Signer::p256("e"));
    let keys = keys(&trust_file(&[&rsa, &p256])).unwrap();
    let cases = [hostile_headers(&rsa, &p256), hostile_claims(&rsa), hostile_texts(&rsa, &p256)].concat();
    assert!(cases.len() >= 90, "{}", cases.len());
    for (name, token, finding) in cases {
        assert_eq!(check(&keys, &token, NOW), finding, "{name}");
        // Nothing of it was remembered.
        assert_eq!(check(&keys, &token, NOW), finding, "{name}, again");
    }
    assert_eq!(check(&keys, &rsa.token(&claims(NOW)), NOW), Finding::Good, "the key works");
}

#[test]
fn no_change_to_a_good_token_leaves_it_good() {
    let (rsa, p256) = (Signer::rsa("r"), Signer::p256("e"));
    let keys = keys(&trust_file(&[&rsa, &p256])).unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    for signer in [&rsa, &p256] {
        let good = signer.token(&claims(NOW));
        for _ in 0..5_000 {
            let mut text = good.clone().into_bytes();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..text.len());
                let byte = b"ABCwxyz0189-_.=+/{ "[rng.random_range(0..19)];
                match rng.random_range(0..4) {
                    0 => text[at] = byte,
                    1 => text.insert(at, byte),
                    2 => drop(text.remove(at)),
                    _ => text.truncate(at.max(8)),
                }
            }
            let text = String::from_utf8(text).unwrap();
            assert_eq!(check(&keys, &text, NOW) == Finding::Good, text == good, "{text}");
        }
    }
}
