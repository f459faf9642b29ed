//! Tokens that are good, keys, headers, and the file on disk.

mod hostile;

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use candela_wire::trust::{AUTHORIZATION, DEADLINE_MS, MAX_TENANT_BYTES, TENANT, TRUST_KEY};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::{
    Caller, Refusal, Trust, TrustFollower, TrustMetrics,
    keys::Keys,
    test_tokens::{SUBJECT, Signer, claims, encoded, trust_file},
    token::{Finding, LEEWAY, check},
};
use crate::api::ApiError;

/// Seconds since 1970, of every test here.
const NOW: u64 = 1_800_000_000;

fn keys(file: &Value) -> Result<Keys, String> {
    Keys::read(file.to_string().as_bytes())
}

/// Good claims with these on top; `null` takes one away.
fn with(changes: Value) -> Value {
    let mut whole = claims(NOW);
    for (name, value) in changes.as_object().unwrap() {
        whole[name] = value.clone();
        if value.is_null() {
            whole.as_object_mut().unwrap().remove(name);
        }
    }
    whole
}

#[test]
fn tokens_of_the_gateway_are_good_in_all_their_shapes() {
    let (rsa, p256) = (Signer::rsa("r"), Signer::p256("e"));
    let keys = keys(&trust_file(&[&rsa, &p256])).unwrap();
    for signer in [&rsa, &p256] {
        for changes in [
            json!({}),
            json!({"aud": "candela-data-plane"}),
            json!({"aud": ["https://other", "candela-data-plane"]}),
            json!({"nbf": null, "iat": null, "jti": null}),
            json!({"exp": NOW as f64 + 0.5}),
            json!({"exp": NOW - LEEWAY + 1}),
            json!({"nbf": NOW + LEEWAY}),
            json!({"exp": 1e300}),
        ] {
            let token = signer.token(&with(changes.clone()));
            assert_eq!(check(&keys, &token, NOW), Finding::Good, "{changes}");
        }
        let mut header = signer.header();
        header["typ"] = "jwt".into();
        let token = signer.compact(&header.to_string(), &claims(NOW).to_string());
        assert_eq!(check(&keys, &token, NOW), Finding::Good);
    }
}

#[test]
fn a_remembered_token_ends_in_time_and_memory_is_bounded() {
    let signer = Signer::p256("e");
    let keys = keys(&trust_file(&[&signer])).unwrap();
    let token = signer.token(&claims(NOW));
    assert_eq!(check(&keys, &token, NOW), Finding::Good);
    assert_eq!(keys.remembered(&token), Some(NOW + 3600 + LEEWAY));
    assert_eq!(check(&keys, &token, NOW + 3600 + LEEWAY - 1), Finding::Good);
    assert_eq!(check(&keys, &token, NOW + 3600 + LEEWAY), Finding::Refused(Refusal::Expired));
    // The ones that end first make room, and are good all the same.
    let of = |n: u64| signer.token(&with(json!({"exp": NOW + 5000 + n})));
    let many: Vec<String> = (0..300).map(of).collect();
    assert!(many.iter().all(|token| check(&keys, token, NOW) == Finding::Good));
    let remembered = many.iter().filter(|token| keys.remembered(token).is_some()).count();
    assert_eq!(remembered, 256);
    assert_eq!(keys.remembered(&token), None);
    assert_eq!(check(&keys, &token, NOW), Finding::Good);
}

#[test]
fn keys_that_cannot_be_used_hide_no_others() {
    let good = Signer::p256("good");
    let bad = [
        json!(null),
        json!({}),
        json!({"kid": "a", "kty": "oct", "k": "AAAA"}),
        json!({"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": encoded(&[1; 32])}),
        json!({"kid": "a", "kty": "EC", "crv": "P-384", "x": encoded(&[1; 48]), "y": encoded(&[1; 48])}),
        json!({"kid": "a", "kty": "EC", "crv": "P-256", "x": encoded(&[1; 32])}),
        json!({"kid": "a", "kty": "EC", "crv": "P-256", "x": encoded(&[1; 31]), "y": encoded(&[1; 32])}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 128]), "e": "AQAB"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[127; 256]), "e": "AQAB"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 1025]), "e": "AQAB"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 256]), "e": "AQ"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 256]), "e": "AAAA"}),
        json!({"kid": "a", "kty": "RSA", "n": "not base64!", "e": "AQAB"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 256]), "e": "AQAB", "use": "enc"}),
        json!({"kid": "a", "kty": "RSA", "n": encoded(&[255; 256]), "e": "AQAB", "alg": "PS256"}),
        json!({"kty": "RSA", "n": encoded(&[255; 256]), "e": "AQAB"}),
    ];
    for jwk in bad {
        let mut file = trust_file(&[&good]);
        file["jwks"]["keys"] = json!([jwk, good.jwk()]);
        let keys = keys(&file).unwrap_or_else(|error| panic!("{jwk}: {error}"));
        assert_eq!(keys.len(), 1, "{jwk}");
        assert_eq!(check(&keys, &good.token(&claims(NOW)), NOW), Finding::Good);
        file["jwks"]["keys"] = json!([jwk]);
        assert!(self::keys(&file).unwrap_err().contains("none of `jwks.keys` can be used"), "{jwk}");
    }
}

#[test]
fn a_file_that_cannot_be_used_says_which_field_is_wrong() {
    let signer = Signer::p256("e");
    for (field, value, says) in [
        ("version", json!(2), "`version` is 2"),
        ("issuer", json!(""), "`issuer` is empty"),
        ("audience", json!(""), "`audience` is empty"),
        ("subjects", json!([]), "`subjects` is empty"),
        ("subjects", json!([SUBJECT, ""]), "`subjects` is empty"),
        ("subjects", json!(SUBJECT), "invalid type"),
        ("jwks", json!(null), "invalid type"),
        ("jwks", json!({"keys": vec![signer.jwk(); 65]}), "more than"),
    ] {
        let mut file = trust_file(&[&signer]);
        file[field] = value;
        let error = keys(&file).unwrap_err();
        assert!(error.contains(says), "{field}: {error}");
    }
    assert!(Keys::read(b"").is_err() && Keys::read(b"\xff").is_err());
}

fn trusting(signers: &[&Signer]) -> Trust {
    let trust = Trust::new(&TrustMetrics::default());
    trust.replace(Some(keys(&trust_file(signers)).unwrap()));
    trust
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

#[test]
fn without_a_token_the_other_headers_mean_nothing() {
    let trust = trusting(&[&Signer::p256("e")]);
    for pairs in
        [&[][..], &[(TENANT, "a")], &[(TENANT, "a"), (DEADLINE_MS, "-1"), ("authorization", "Bearer x")]]
    {
        assert_eq!(trust.caller_at(&headers(pairs), NOW), Ok(Caller::default()));
    }
}

#[test]
fn tenants_have_salts_of_their_own() {
    let signer = Signer::p256("e");
    let trust = trusting(&[&signer]);
    let bearer = format!("Bearer {}", signer.token(&claims(NOW)));
    let salt = |trust: &Trust, tenant: &str| {
        let caller = trust.caller_at(&headers(&[(AUTHORIZATION, &bearer), (TENANT, tenant)]), NOW).unwrap();
        assert!(caller.trusted);
        caller.salt.unwrap()
    };
    assert_eq!(salt(&trust, "a"), salt(&trust, "a"));
    assert_ne!(salt(&trust, "a"), salt(&trust, "b"));
    assert_ne!(salt(&trust, "a"), salt(&trust, "A"));
    assert_ne!(salt(&trust, "a"), salt(&trusting(&[&signer]), "a"), "another process");
    let nobody = trust.caller_at(&headers(&[(AUTHORIZATION, &bearer)]), NOW).unwrap();
    assert_eq!(nobody, Caller { trusted: true, salt: None, deadline: None });
}

#[test]
fn headers_that_cannot_be_are_named() {
    let signer = Signer::p256("e");
    let trust = trusting(&[&signer]);
    let bearer = format!("bearer {}", signer.token(&claims(NOW)));
    let caller = |more: &[(&'static str, &str)]| {
        trust.caller_at(&headers(&[&[(AUTHORIZATION, bearer.as_str())][..], more].concat()), NOW)
    };
    for (text, ms) in [("1", 1), ("250", 250), ("086400000", 86_400_000)] {
        assert_eq!(caller(&[(DEADLINE_MS, text)]).unwrap().deadline, Some(Duration::from_millis(ms)));
    }
    let long = "t".repeat(MAX_TENANT_BYTES + 1);
    assert!(caller(&[(TENANT, &long[1..])]).unwrap().salt.is_some());
    let wrong: [(&'static str, Vec<&str>); 2] = [
        (
            DEADLINE_MS,
            vec![
                "",
                "0",
                "-1",
                "+1",
                "1.5",
                "1e3",
                "ten",
                "86400001",
                "99999999999999999999999",
                "１",
                "1 2",
            ],
        ),
        (TENANT, vec!["", "a b", "é", "a\tb", &long]),
    ];
    for (name, texts) in wrong {
        for text in texts {
            let refused = caller(&[(name, text)]);
            assert!(
                matches!(&refused, Err(ApiError::GatewayHeader { name: named, .. }) if *named == name),
                "{text:?}: {refused:?}"
            );
        }
        let twice = caller(&[(name, "1"), (name, "1")]);
        assert!(
            matches!(&twice, Err(ApiError::GatewayHeader { what, .. }) if what.contains("more than once")),
            "{twice:?}"
        );
    }
}

#[test]
fn a_token_that_cannot_be_read_is_refused_and_one_that_cannot_be_checked_shares_with_nobody() {
    let (signer, unknown) = (Signer::p256("e"), Signer::p256("f"));
    let trust = trusting(&[&signer]);
    let token = signer.token(&claims(NOW));
    let good = format!("Bearer {token}");
    for value in ["", "Bearer", "Bearer ", &token, "Basic YTpi", &format!("Bearer  {token}"), "Bearer é"] {
        let refused = trust.caller_at(&headers(&[(AUTHORIZATION, value), (TENANT, "a")]), NOW);
        assert_eq!(refused, Err(ApiError::GatewayToken(Refusal::Malformed)), "{value:?}");
    }
    let twice = trust.caller_at(&headers(&[(AUTHORIZATION, &good), (AUTHORIZATION, &good)]), NOW);
    assert_eq!(twice, Err(ApiError::GatewayToken(Refusal::Malformed)));

    let alone = |trust: &Trust, bearer: &str| {
        let pairs = [(AUTHORIZATION, bearer), (TENANT, "a"), (DEADLINE_MS, "1")];
        let caller = trust.caller_at(&headers(&pairs), NOW).unwrap();
        assert_eq!((caller.trusted, caller.deadline), (false, None));
        caller.salt.unwrap()
    };
    let bearer = format!("Bearer {}", unknown.token(&claims(NOW)));
    assert_ne!(alone(&trust, &bearer), alone(&trust, &bearer));
    trust.replace(None);
    assert_ne!(alone(&trust, &good), alone(&trust, &good));
}

/// As the kubelet does: a new folder, and a link that is swapped in one step.
fn publish(dir: &Path, version: u32, text: &str) {
    let folder = dir.join(format!("..{version}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(TRUST_KEY), text).unwrap();
    let _ = fs::remove_file(dir.join("..data_tmp"));
    symlink(folder.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if !dir.join(TRUST_KEY).is_symlink() {
        symlink(Path::new("..data").join(TRUST_KEY), dir.join(TRUST_KEY)).unwrap();
    }
}

#[test]
fn keys_come_change_and_go_with_the_file() {
    let (old, new) = (Signer::p256("old"), Signer::rsa("new"));
    let dir = tempfile::TempDir::new().unwrap();
    let trust = Arc::new(Trust::new(&TrustMetrics::default()));
    let mut follower = TrustFollower::start(Arc::clone(&trust), dir.path().join(TRUST_KEY));
    let trusted = |signer: &Signer| {
        let bearer = format!("Bearer {}", signer.token(&claims(NOW)));
        trust.caller_at(&headers(&[(AUTHORIZATION, &bearer)]), NOW).map(|caller| caller.trusted)
    };
    assert_eq!(trusted(&old), Ok(false), "no file yet");
    let mut publish = |version, text: &str| {
        publish(dir.path(), version, text);
        follower.look();
    };
    publish(1, &trust_file(&[&old]).to_string());
    assert_eq!((trusted(&old), trusted(&new)), (Ok(true), Ok(false)));
    publish(2, &trust_file(&[&old, &new]).to_string());
    assert_eq!((trusted(&old), trusted(&new)), (Ok(true), Ok(true)));
    publish(3, &trust_file(&[&new]).to_string());
    assert_eq!(
        (trusted(&old), trusted(&new)),
        (Ok(false), Ok(true)),
        "what was remembered went with its key"
    );
    for (version, broken) in [(4, "{"), (5, ""), (6, r#"{"version":7}"#)] {
        publish(version, broken);
        assert_eq!(trusted(&new), Ok(true), "{broken:?} changes nothing");
    }
    publish(7, &" ".repeat(2 << 20));
    assert_eq!(trusted(&new), Ok(true), "a file too large changes nothing");
    fs::remove_file(dir.path().join("..data")).unwrap();
    follower.look();
    assert_eq!(trusted(&new), Ok(false), "gone");
}
