//! Known answers that were not made by this code, and what must be refused.
//!
//! GitHub, Slack and Standard Webhooks publish examples with a secret. Stripe publishes none: its example comes from an
//! independent client of it. The generic scheme is held against RFC 4231 and openssl.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const TOLERANCE: Duration = Duration::from_secs(300);

type Headers = Vec<(&'static str, String)>;

fn headers(pairs: &[(&'static str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn lookup<'h>(headers: &'h Headers) -> impl Fn(&str) -> Option<&'h str> {
    move |name| headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn hmac(timestamp_header: Option<&str>) -> Scheme {
    let signature_header = Scheme::SIGNATURE_HEADER.to_owned();
    Scheme::Hmac { signature_header, timestamp_header: timestamp_header.map(str::to_owned) }
}

/// A request as somebody's documentation has it.
#[derive(Debug, Clone)]
struct Example {
    scheme: Scheme,
    secret: &'static str,
    headers: Headers,
    body: &'static str,
    /// When it was signed.
    signed: i64,
    delivery_id: Option<&'static str>,
}

impl Example {
    fn verify(&self, now: Timestamp) -> Result<Verified, Refused> {
        let lookup = lookup(&self.headers);
        verify(&self.scheme, self.secret.as_bytes(), &lookup, self.body.as_bytes(), now, TOLERANCE)
    }

    fn has_timestamp(&self) -> bool {
        self.signed != 0
    }
}

fn github() -> Example {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let delivery = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    Example {
        scheme: Scheme::GitHub,
        secret: "It's a Secret to Everybody",
        headers: headers(&[("X-Hub-Signature-256", signature), ("X-GitHub-Delivery", delivery)]),
        body: "Hello, World!",
        signed: 0,
        delivery_id: Some(delivery),
    }
}

fn gitlab() -> Example {
    let key = "f5e5f430-f57b-4e6e-9fac-d9128cd7232f";
    Example {
        scheme: Scheme::GitLab,
        secret: "a plain token",
        headers: headers(&[("X-Gitlab-Token", "a plain token"), ("Idempotency-Key", key)]),
        body: "{}",
        signed: 0,
        delivery_id: Some(key),
    }
}

fn stripe() -> Example {
    Example {
        scheme: Scheme::Stripe,
        secret: "secret",
        headers: headers(&[(
            "Stripe-Signature",
            "t=1533204620,v1=5a81ebe328da1df19581cbc6c7377920947ffd30b56eebcc7ba9a6938a090965,\
             v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef",
        )]),
        body: concat!(
            r#"{"account":"acct_123","api_version":"2017-05-25","created":1533204620,"data":{"object":{"amount":1000,"#,
            r#""currency":"usd","customer":"cus_123","date":1533204620,"description":"Test Invoice Item","#,
            r#""discountable":false,"id":"ii_123","invoice":"in_123","livemode":false,"metadata":{},"#,
            r#""object":"invoiceitem","period":{"end":1533204620,"start":1533204620},"proration":false,"#,
            r#""quantity":3}},"id":"evt_123","#,
            r#""livemode":false,"object":"event","pending_webhooks":1,"request":{"id":"req_123","#,
            r#""idempotency_key":"idempotency-key-123"},"type":"invoiceitem.created"}"#,
        ),
        signed: 1_533_204_620,
        delivery_id: None,
    }
}

fn slack() -> Example {
    Example {
        scheme: Scheme::Slack,
        secret: "8f742231b10e8888abcd99yyyzzz85a5",
        headers: headers(&[
            ("X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
            ("X-Slack-Request-Timestamp", "1531420618"),
        ]),
        body: "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&\
               channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&\
               response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F\
               96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        signed: 1_531_420_618,
        delivery_id: None,
    }
}

fn standard(names: [&'static str; 3]) -> Example {
    let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    let signatures = "v1a,c2lnbmVkIGJ5IGFub3RoZXIga2V5 v1,bm9wZQ== v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    Example {
        scheme: Scheme::Standard,
        secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        headers: headers(&[(names[0], id), (names[1], "1614265330"), (names[2], signatures)]),
        body: r#"{"test": 2432232314}"#,
        signed: 1_614_265_330,
        delivery_id: Some(id),
    }
}

/// Test case 2 of RFC 4231.
fn generic() -> Example {
    let signature = "5BDCC146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    Example {
        scheme: hmac(None),
        secret: "Jefe",
        headers: headers(&[("X-Webhook-Signature", signature), ("Idempotency-Key", "7")]),
        body: "what do ya want for nothing?",
        signed: 0,
        delivery_id: Some("7"),
    }
}

/// `printf '1700000000.{"event":"ping"}' | openssl dgst -sha256 -hmac 'correct horse'`
fn generic_with_timestamp() -> Example {
    let signature = "sha256=a4a4e2ce44b8d5a6577edb3a6802564f4e54a485b073423d4013894641942e89";
    Example {
        scheme: hmac(Some("X-Webhook-Timestamp")),
        secret: "correct horse",
        headers: headers(&[
            ("X-Webhook-Signature", signature),
            ("X-Webhook-Timestamp", "1700000000"),
            ("X-Webhook-Id", "ping-1"),
            ("Idempotency-Key", "7"),
        ]),
        body: r#"{"event":"ping"}"#,
        signed: 1_700_000_000,
        delivery_id: Some("ping-1"),
    }
}

fn examples() -> Vec<Example> {
    let standards = [
        standard(["webhook-id", "webhook-timestamp", "webhook-signature"]),
        standard(["svix-id", "svix-timestamp", "svix-signature"]),
    ];
    [vec![github(), gitlab(), stripe(), slack(), generic(), generic_with_timestamp()], standards.to_vec()].concat()
}

#[test]
fn what_the_senders_publish_is_verified() {
    for example in examples() {
        let delivery_id = example.delivery_id.map(str::to_owned);
        assert_eq!(example.verify(at(example.signed)), Ok(Verified { delivery_id }), "{example:?}");
    }
}

#[test]
fn another_body_secret_or_signature_is_refused() {
    for example in examples() {
        let now = at(example.signed);
        // GitLab's token says nothing about the body.
        if example.scheme != Scheme::GitLab {
            assert_eq!(Example { body: "{ }", ..example.clone() }.verify(now), Err(Refused::Mismatch), "{example:?}");
        }
        let secret = "c29tZXRoaW5nIGVsc2U=";
        assert_eq!(Example { secret, ..example.clone() }.verify(now), Err(Refused::Mismatch), "{example:?}");
        for at in 0..example.headers.len() {
            let mut lacking = example.clone();
            let (name, _) = lacking.headers.remove(at);
            let without = lacking.verify(now);
            let optional = ["X-GitHub-Delivery", "Idempotency-Key", "X-Webhook-Id"].contains(&name);
            assert_eq!(without.is_ok(), optional, "{name}: {without:?}");
            if name.contains("ignature") && !name.starts_with("svix") {
                assert_eq!(without, Err(Refused::Missing(name.to_owned())));
            }
        }
    }
}

#[test]
fn a_secret_that_anybody_has_verifies_nothing() {
    for example in examples() {
        let refused = Example { secret: "", ..example.clone() }.verify(at(example.signed));
        assert_eq!(refused, Err(Refused::Secret(InvalidSecret::Empty)));
    }
}

#[test]
fn a_timestamp_counts_within_the_tolerance_on_both_sides() {
    for example in examples().into_iter().filter(Example::has_timestamp) {
        for (off, ok) in [(-301, false), (-300, true), (300, true), (301, false)] {
            assert_eq!(example.verify(at(example.signed + off)).is_ok(), ok, "{off}: {example:?}");
        }
        let old = example.verify(at(example.signed + 725)).expect_err("it is old");
        assert_eq!(old.to_string(), "it was signed 12m 5s ago, more than 5m are not accepted");
        let early = example.verify(at(example.signed - 7200)).expect_err("it is early");
        assert_eq!(early.to_string(), "it was signed 2h in the future, more than 5m are not accepted");
    }
}

#[test]
fn who_cannot_sign_learns_nothing_about_the_clock() {
    for example in examples().into_iter().filter(Example::has_timestamp) {
        let forged = Example { body: "forged", ..example.clone() };
        assert_eq!(forged.verify(at(example.signed + 100_000)), Err(Refused::Mismatch));
    }
}

#[test]
fn no_scheme_takes_the_signature_of_another() {
    let mut all = Vec::new();
    for example in examples() {
        all.extend(example.headers);
    }
    let stranger = Example { headers: all, secret: "another secret", ..github() };
    for scheme in [Scheme::GitHub, Scheme::GitLab, Scheme::Stripe, Scheme::Slack, hmac(None)] {
        let refused = Example { scheme, ..stranger.clone() }.verify(at(1_700_000_000));
        assert_eq!(refused, Err(Refused::Mismatch));
    }
}

#[test]
fn several_signatures_are_allowed_where_secrets_change() {
    let stripe = stripe();
    let value = stripe.headers[0].1.replace(",v1=", &format!(",v1={},v1=", "0".repeat(64)));
    let two = Example { headers: headers(&[("Stripe-Signature", &value)]), ..stripe.clone() };
    assert!(two.verify(at(stripe.signed)).is_ok());
    // But not as many as somebody likes to have compared.
    let value = stripe.headers[0].1.replace(",v1=", &format!("{},v1=", format!(",v1={}", "0".repeat(64)).repeat(16)));
    let many = Example { headers: headers(&[("Stripe-Signature", &value)]), ..stripe.clone() };
    assert_eq!(many.verify(at(stripe.signed)), Err(Refused::Mismatch));
}

#[test]
fn malformed_headers_are_named() {
    let cases = [
        (github(), "X-Hub-Signature-256", "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"),
        (github(), "X-Hub-Signature-256", "sha256=zz"),
        (github(), "X-Hub-Signature-256", "sha1=7d38cdd689735b008b3c702edd92eea23791c5f6"),
        (slack(), "X-Slack-Signature", "v1=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
        (stripe(), "Stripe-Signature", "v1=5a81ebe328da1df19581cbc6c7377920947ffd30b56eebcc7ba9a6938a090965"),
        (stripe(), "Stripe-Signature", "t=1,t=2,v1=5a81ebe328da1df19581cbc6c7377920947ffd30b56eebcc7ba9a6938a090965"),
        (generic(), "X-Webhook-Signature", "5bdcc146"),
        (standard(["webhook-id", "webhook-timestamp", "webhook-signature"]), "webhook-signature", "v1a,AAAA v2,BBBB"),
    ];
    for (mut example, header, value) in cases {
        example.headers.retain(|(name, _)| *name != header);
        example.headers.push((header, value.to_owned()));
        let refused = example.verify(at(example.signed)).expect_err("malformed");
        assert!(matches!(&refused, Refused::Malformed { header: named, .. } if named == header), "{refused:?}");
        assert!(!refused.to_string().contains(value), "{refused}");
    }
}

#[test]
fn a_timestamp_that_is_signed_must_still_be_one() {
    for timestamp in ["", "soon", "-1700000000", "+1700000000", "1700000000.5", "1700000000000000"] {
        let body = "{}";
        let signed = mac(b"key", &[timestamp.as_bytes(), b".", body.as_bytes()]).expect("a key");
        let signature: String = signed.iter().map(|byte| format!("{byte:02x}")).collect();
        let headers = headers(&[("X-Webhook-Signature", &signature), ("T", timestamp)]);
        let example = Example { scheme: hmac(Some("T")), secret: "key", headers, body, ..generic() };
        let expected = "header T is malformed: expected a time in seconds since 1970";
        assert_eq!(example.verify(at(0)).expect_err("no time").to_string(), expected, "{timestamp}");
    }
}

#[test]
fn our_own_callbacks_are_signed_by_the_standard() {
    let Example { secret, body, signed, .. } = standard(["webhook-id", "webhook-timestamp", "webhook-signature"]);
    let sign = |secret: &str| {
        let timestamp = Timestamp::from_millis(signed * 1000 + 999);
        sign_standard(secret.as_bytes(), "msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp, body.as_bytes())
    };
    let published = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(sign(secret).as_deref(), Ok(published));
    assert_eq!(sign("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").as_deref(), Ok(published));
    assert_eq!(sign("whsec_no base64"), Err(InvalidSecret::NotBase64));
}

#[test]
fn a_secret_that_cannot_be_the_right_one_is_told_early() {
    for example in examples() {
        assert_eq!(check_secret(&example.scheme, example.secret), Ok(()));
        assert_eq!(check_secret(&example.scheme, ""), Err(InvalidSecret::Empty));
        assert_eq!(check_secret(&example.scheme, " secret"), Err(InvalidSecret::Spaced));
    }
    assert_eq!(check_secret(&Scheme::Standard, "whsec_"), Err(InvalidSecret::Empty));
    for bad in ["whsec_not base64", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "correct horse"] {
        assert_eq!(check_secret(&Scheme::Standard, bad), Err(InvalidSecret::NotBase64), "{bad}");
    }
    assert_eq!(check_secret(&Scheme::Stripe, "whsec_not base64"), Ok(()));
    for (scheme, bad) in [(Scheme::Stripe, "sk_live_1"), (Scheme::Slack, "xoxb-1"), (Scheme::Standard, "whpk_AAAA")] {
        let text = check_secret(&scheme, bad).expect_err(bad).to_string();
        assert!(text.contains("a webhook's signing secret") && !text.contains(bad), "{text}");
    }
}

#[test]
fn deliveries_that_share_an_id_are_told_apart_by_their_bodies() {
    let id = |scheme, header, value: &str, body: &[u8]| {
        event::delivery_id(&scheme, &lookup(&headers(&[(header, value)])), body).expect("an id")
    };
    let gitlab = |body| id(Scheme::GitLab, "X-Gitlab-Event-UUID", "13792a34", body);
    assert_eq!(gitlab(b"one"), gitlab(b"one"));
    assert_ne!(gitlab(b"one"), gitlab(b"two"));
    assert!(gitlab(b"one").starts_with("13792a34."), "{}", gitlab(b"one"));
    assert_ne!(id(hmac(None), "X-Request-Id", "7", b"one"), id(hmac(None), "X-Request-Id", "7", b"two"));
    assert_eq!(id(Scheme::GitHub, "x-github-delivery", "7", b"one"), "7");
    // Whatever is sent as an id fits a key and a line of the log.
    for odd in ["x".repeat(201), "line\nline".to_owned(), "ü".to_owned()] {
        let id = id(Scheme::GitHub, "X-GitHub-Delivery", &odd, b"");
        assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    }
}

#[test]
fn ids_and_types_in_bodies_are_found() {
    let none = |_: &str| None::<&str>;
    let slack = json!({"type": "event_callback", "event_id": "Ev08", "event": {"type": "app_mention"}});
    assert_eq!(delivery_id_in_body(&Scheme::Slack, &slack).as_deref(), Some("Ev08"));
    assert_eq!(delivery_id_in_body(&Scheme::Stripe, &json!({"id": "evt_1"})).as_deref(), Some("evt_1"));
    assert_eq!(delivery_id_in_body(&Scheme::Stripe, &json!({"id": 1})), None);
    assert_eq!(delivery_id_in_body(&Scheme::GitHub, &json!({"id": "1", "event_id": "2"})), None);
    let name = |scheme: &Scheme, body| event_type(scheme, &none, &body).map(|event| event.name);
    assert_eq!(name(&Scheme::Slack, slack).as_deref(), Some("app_mention"));
    assert_eq!(name(&Scheme::Slack, json!({"type": "url_verification"})).as_deref(), Some("url_verification"));
    assert_eq!(name(&Scheme::Stripe, json!({"type": "invoice.paid"})).as_deref(), Some("invoice.paid"));
    assert_eq!(name(&Scheme::Standard, json!({"type": "user.created"})).as_deref(), Some("user.created"));
    assert_eq!(name(&hmac(None), json!({"event": {"type": "x"}, "type": "ping"})).as_deref(), Some("ping"));
    for nothing in [json!(null), json!([1]), json!("type"), json!({"type": 1}), json!({"type": ""})] {
        assert_eq!(name(&Scheme::Stripe, nothing), None);
    }
    assert_eq!(name(&Scheme::Stripe, json!({"type": "x".repeat(201)})), None);
    assert_eq!(name(&Scheme::Stripe, json!({"type": "a\nb"})), None);
}

#[test]
fn a_filter_matches_the_event_and_the_event_with_its_action() {
    let event = |scheme, name, value: &str, body| {
        event_type(&scheme, &lookup(&headers(&[(name, value)])), &body).expect("a type")
    };
    let issues = event(Scheme::GitHub, "X-GitHub-Event", "issues", json!({"action": "opened"}));
    assert_eq!(issues.name, "issues");
    assert!(issues.matches("issues") && issues.matches("issues.opened") && !issues.matches("issues.closed"));
    let merge = json!({"object_kind": "merge_request", "object_attributes": {"action": "open"}});
    // The body of a Standard Webhook from GitLab is GitLab's.
    for scheme in [Scheme::GitLab, Scheme::Standard] {
        let merge = event(scheme, "X-Gitlab-Event", "Merge Request Hook", merge.clone());
        assert_eq!(merge.name, "Merge Request Hook");
        assert!(merge.matches("merge_request") && merge.matches("merge_request.open") && !merge.matches("push"));
    }
    assert_eq!(event(hmac(None), "X-Event-Type", "deploy", json!({"event": "ping"})).name, "deploy");
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    let schemes = examples().into_iter().map(|example| example.scheme).collect::<Vec<_>>();
    proptest::sample::select(schemes)
}

proptest! {
    #[test]
    fn what_nobody_signed_is_refused_without_a_word_of_it(
        scheme in any_scheme(), secret in "[A-Za-z0-9+/]{64}",
        values in proptest::collection::vec(
            "(t=|v0=|v1=|v1,|sha256=|[0-9]{1,14}|[0-9a-f]{64}|[ ,=]|\\PC{0,9}){0,6}", 3,
        ),
        body in proptest::collection::vec(any::<u8>(), 0..64), millis in any::<i64>(),
    ) {
        let names = [
            "X-Hub-Signature-256", "X-Gitlab-Token", "Stripe-Signature", "X-Slack-Signature", "webhook-signature",
            "X-Webhook-Signature", "X-Slack-Request-Timestamp", "webhook-timestamp", "X-Webhook-Timestamp",
            "webhook-id",
        ];
        let headers: Headers =
            names.iter().enumerate().map(|(at, name)| (*name, values[at % 3].clone())).collect();
        let now = Timestamp::from_millis(millis);
        let refused = verify(&scheme, secret.as_bytes(), &lookup(&headers), &body, now, TOLERANCE);
        let text = refused.expect_err("nobody signed it").to_string();
        prop_assert!(!text.contains(&secret));
        let mut long = values.iter().filter(|value| value.len() > 12);
        prop_assert!(long.all(|value| !text.contains(value.as_str())), "{}", text);
    }

    #[test]
    fn our_signature_is_verified_and_every_change_of_it_refused(
        id in "[a-z0-9_-]{1,40}", body in proptest::collection::vec(any::<u8>(), 0..64),
        at in any::<proptest::sample::Index>(), seconds in 0i64..4_000_000_000, off in -300_000i64..=300_000,
    ) {
        let secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let signed = Timestamp::from_millis(seconds * 1000);
        let signature = sign_standard(secret, &id, signed, &body).expect("a secret");
        let now = Timestamp::from_millis(seconds * 1000 + off);
        let check = |id: &str, seconds: i64, signature: &str, body: &[u8]| {
            let timestamp = seconds.to_string();
            let headers = headers(&[
                ("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", signature),
            ]);
            verify(&Scheme::Standard, secret, &lookup(&headers), body, now, TOLERANCE)
        };
        prop_assert_eq!(check(&id, seconds, &signature, &body), Ok(Verified { delivery_id: Some(id.clone()) }));
        let mut changed = body.clone();
        match body.is_empty() {
            true => changed.push(0),
            false => changed[at.index(body.len())] ^= 1,
        }
        prop_assert_eq!(check(&id, seconds, &signature, &changed), Err(Refused::Mismatch));
        prop_assert_eq!(check(&format!("{id}x"), seconds, &signature, &body), Err(Refused::Mismatch));
        prop_assert_eq!(check(&id, seconds + 1, &signature, &body), Err(Refused::Mismatch));
    }
}
