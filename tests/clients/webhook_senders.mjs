// Tells the gateway events that are signed by the senders' own libraries.
//
// Usage: node webhook_senders.mjs BASE_URL      (BASE_URL such as http://127.0.0.1:8642)
//
// The gateway has the webhooks `github`, `stripe`, `svix` and `standard`, whose secrets are below. The first failure ends
// the run.

import { sign } from "@octokit/webhooks-methods";
import { Webhook } from "standardwebhooks";
import Stripe from "stripe";
import { Webhook as Svix } from "svix";

const BASE = process.argv[2];
if (!BASE) throw new Error("usage: node webhook_senders.mjs BASE_URL");
const GITHUB_SECRET = "It's a Secret to Everybody";
const STRIPE_SECRET = "whsec_test_secret_of_the_tests";
const STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

let passed = 0;

function equal(got, want, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, want ${b}`);
  passed += 1;
}

async function tell(hook, body, headers) {
  const answer = await fetch(`${BASE}/webhooks/${hook}`, {
    method: "POST",
    body,
    headers: { "content-type": "application/json", ...headers },
  });
  return [answer.status, await answer.json()];
}

async function github() {
  const body = JSON.stringify({ action: "opened", issue: { title: "It breaks 🦀" }, repository: { full_name: "a/b" } });
  const signed = async (body, event = "issues", id = "72d3162e-cc78-11e3-81ab-4c9367dc0958") => ({
    "X-GitHub-Event": event,
    "X-GitHub-Delivery": id,
    "X-Hub-Signature-256": await sign(GITHUB_SECRET, body),
  });
  const [status, told] = await tell("github", body, await signed(body));
  equal([status, told.status], [202, "accepted"], "an event");
  equal(told.session, "webhook:github:a/b", "the session of its repository");
  equal((await tell("github", body, await signed(body)))[1].turn, told.turn, "the same event again");
  equal((await tell("github", body, await signed(body, "ping", "p")))[1].status, "ignored", "a ping");
  equal((await tell("github", body, await signed(body, "push", "q")))[1].status, "ignored", "an event that is not wanted");
  equal((await tell("github", body + " ", await signed(body)))[0], 401, "changed on the way");
  equal((await tell("github", body, { ...(await signed(body)), "X-Hub-Signature-256": "sha256=00" }))[0], 401, "no signature");
  equal((await tell("github", body, {}))[0], 401, "unsigned");
  // As GitHub sends it when a hook is set to forms.
  const form = `payload=${encodeURIComponent(body)}`;
  const headers = { ...(await signed(form, "issues", "form")), "content-type": "application/x-www-form-urlencoded" };
  equal((await tell("github", form, headers))[0], 202, "a form");
}

async function stripe() {
  const payload = JSON.stringify({ id: "evt_1", object: "event", type: "charge.succeeded", data: { object: {} } });
  const { webhooks } = new Stripe("sk_test_of_the_tests");
  const signed = (more = {}) => ({
    "Stripe-Signature": webhooks.generateTestHeaderString({ payload, secret: STRIPE_SECRET, ...more }),
  });
  const [status, told] = await tell("stripe", payload, signed());
  equal([status, told.status], [202, "accepted"], "an event");
  equal((await tell("stripe", payload, signed()))[1], { ...told, status: "duplicate" }, "the same event again");
  equal((await tell("stripe", payload, signed({ secret: "whsec_another" })))[0], 401, "another secret");
  equal((await tell("stripe", payload, signed({ timestamp: Math.floor(Date.now() / 1000) - 3600 })))[0], 401, "an hour old");
  equal((await tell("stripe", `${payload} `, signed()))[0], 401, "changed on the way");
  equal((await tell("stripe", payload, {}))[0], 401, "unsigned");
}

async function standard() {
  const body = JSON.stringify({ type: "user.created", data: { text: "hello" } });
  const now = new Date();
  const at = Math.floor(now / 1000).toString();
  const svix = new Svix(STANDARD_SECRET).sign("msg_svix", now, body);
  const names = { "svix-id": "msg_svix", "svix-timestamp": at, "svix-signature": svix };
  equal((await tell("svix", body, names))[0], 202, "Svix' own names of the headers");
  equal((await tell("svix", body, names))[1].status, "duplicate", "the same event again");
  equal((await tell("svix", body, { ...names, "svix-id": "msg_other" }))[0], 401, "the id is signed, too");
  const signature = new Webhook(STANDARD_SECRET).sign("msg_node", now, body);
  const plain = { "webhook-id": "msg_node", "webhook-timestamp": at, "webhook-signature": signature };
  equal((await tell("standard", body, plain))[0], 202, "Standard Webhooks");
  equal((await tell("standard", body.replace("hello", "hullo"), plain))[0], 401, "changed on the way");
}

await github();
await stripe();
await standard();
console.log(`${passed} passed, 0 failed`);
