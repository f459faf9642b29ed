//! Spam or ham. Messages are put together from parts; some parts and some ways of asking are only for evaluation.

use rand::Rng;

use super::{
    item::{Expect, Item, Split, Task, fill, one},
    words::{CITIES, DAYS, FOODS, MEN, WOMEN},
};

const PROMPTS: &[&str] = &[
    "Is this message spam or ham?\n{m}",
    "Spam or ham?\n{m}",
    "Classify this message as spam or ham: {m}",
    "Message: {m}\nAnswer spam or ham.",
    "Is this spam? Answer spam or ham.\nMessage: {m}",
    "Say whether this message is spam or ham: {m}",
];
const HELD_OUT: &[&str] = &[
    "Message: {m}\nIs this message spam or ham?",
    "Say spam or ham for this message: {m}",
    "Classify the message. Answer spam or ham.\n{m}",
];

const SPAM_OPENINGS: &[&str] = &[
    "Congratulations!",
    "URGENT!",
    "Dear customer,",
    "You have been selected!",
    "WINNER!",
    "Last chance!",
    "Limited offer!",
    "Attention!",
    "Dear friend,",
    "Act now!",
];
const SPAM_OFFERS: &[&str] = &[
    "You have won a prize of {k} dollars.",
    "Your account is locked.",
    "Get a free phone today.",
    "Cheap pills without a doctor.",
    "Earn {k} dollars a day from home.",
    "You won a free trip to {city}.",
    "Your bank password has expired.",
    "Buy now and save {k} dollars.",
    "A loan of {k} dollars is waiting for you.",
    "Double your money in one week.",
    "Claim your free gift card.",
    "Hot investment with high profit.",
    "Meet singles in {city} tonight.",
];
const SPAM_OFFERS_HELD_OUT: &[&str] = &[
    "You have won a free gift of {k} dollars.",
    "Earn high profit from home with a free loan.",
    "Your bank account has expired.",
    "Claim your prize of {k} dollars today.",
    "Buy cheap phone pills and save money.",
];
const SPAM_CALLS: &[&str] = &[
    "Click here now.",
    "Click the link to claim.",
    "Send your card number.",
    "Call this number now.",
    "Reply with your password.",
    "Visit our web site now.",
    "Do not miss it.",
    "Verify your account here.",
];
const SPAM_CALLS_HELD_OUT: &[&str] =
    &["Click the link now.", "Send your password and card number.", "Claim it here now."];

const HAM_OPENINGS: &[&str] = &[
    "Hi {name},",
    "Hello {name},",
    "Hey,",
    "Good morning {name},",
    "Dear {name},",
    "{name},",
    "Hi all,",
    "",
];
const HAM_TOPICS: &[&str] = &[
    "the meeting moved to {day}.",
    "can we have lunch on {day}?",
    "I am late, the train from {city} is slow.",
    "please buy {food} on your way home.",
    "the report is ready, I put it on your desk.",
    "see you at the office on {day}.",
    "thanks for your help with the garden.",
    "mother asks if you come for dinner on {day}.",
    "I left my keys at your house.",
    "the children liked the {food} very much.",
    "we arrive in {city} on {day}.",
    "the teacher wrote about the homework.",
    "my new job in {city} is going well.",
];
const HAM_TOPICS_HELD_OUT: &[&str] = &[
    "can we move the meeting to {day}?",
    "I am on the train to {city}, see you at dinner.",
    "please put the keys on my desk.",
    "mother made {food} for lunch on {day}.",
    "thanks for the report, the teacher liked it.",
];
const HAM_ENDINGS: &[&str] = &[
    "See you soon.",
    "Thanks!",
    "Best wishes, {other}",
    "Let me know.",
    "Talk to you later.",
    "Love, {other}",
    "",
    "Have a nice day.",
];
const HAM_ENDINGS_HELD_OUT: &[&str] = &["See you later, {other}", "Let me know soon.", "Have a nice {day}."];

pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Item {
    let spam = rng.random_bool(0.5);
    let parts = if spam {
        [
            one(rng, SPAM_OPENINGS),
            one(rng, split.pick(SPAM_OFFERS, SPAM_OFFERS_HELD_OUT)),
            one(rng, split.pick(SPAM_CALLS, SPAM_CALLS_HELD_OUT)),
        ]
    } else {
        [
            one(rng, HAM_OPENINGS),
            one(rng, split.pick(HAM_TOPICS, HAM_TOPICS_HELD_OUT)),
            one(rng, split.pick(HAM_ENDINGS, HAM_ENDINGS_HELD_OUT)),
        ]
    };
    let amount = (rng.random_range(1..20) * 50).to_string();
    let values = [
        ("k", amount.as_str()),
        ("city", one(rng, CITIES)),
        ("day", one(rng, DAYS)),
        ("food", one(rng, FOODS)),
        ("name", one(rng, WOMEN)),
        ("other", one(rng, MEN)),
    ];
    // Parts drop out at times, so that a verdict cannot hang on one of them.
    let keep = rng.random_range(0..4);
    let parts: Vec<&str> = parts
        .into_iter()
        .enumerate()
        .filter(|(i, part)| *i != keep || *i == 1 && !part.is_empty())
        .map(|(_, p)| p)
        .collect();
    let message = fill(parts.join(" ").trim(), &values);
    let answer = if spam { "spam" } else { "ham" };
    Item {
        task: Task::Spam,
        prompt: fill(one(rng, split.pick(PROMPTS, HELD_OUT)), &[("m", &message)]),
        expect: Expect::Equals(answer.into()),
        answer: answer.into(),
    }
}
