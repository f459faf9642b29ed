//! Names and things that the generated texts share: small closed lists, so that a small model can learn to copy them.

pub(super) const WOMEN: &[&str] = &[
    "Anna", "Maria", "Lena", "Sofia", "Emma", "Julia", "Nora", "Clara", "Alice", "Eva", "Olga", "Rita",
    "Sara", "Tina", "Vera", "Zoe", "Ida", "Mina",
];
pub(super) const MEN: &[&str] = &[
    "Tom", "Peter", "Paul", "Max", "David", "Leo", "Adam", "Ben", "Carl", "Felix", "Hugo", "Ivan", "Jack",
    "Karim", "Luis", "Omar", "Sam", "Victor",
];
pub(super) const CITIES: &[&str] = &[
    "Paris", "Berlin", "Rome", "Madrid", "Lisbon", "London", "Dublin", "Oslo", "Vienna", "Athens", "Cairo",
    "Nairobi", "Tokyo", "Hanoi", "Seoul", "Lima", "Havana", "Ottawa", "Warsaw", "Moscow",
];
pub(super) const JOBS: &[&str] = &[
    "baker", "teacher", "doctor", "pilot", "farmer", "painter", "nurse", "cook", "driver", "singer",
    "lawyer", "writer", "dentist", "gardener",
];
pub(super) const PETS: &[&str] = &[
    "dog", "cat", "horse", "rabbit", "parrot", "turtle", "hamster", "goat", "duck", "pony", "snake", "mouse",
];
pub(super) const FOODS: &[&str] = &[
    "pizza", "rice", "soup", "bread", "cheese", "fish", "salad", "apples", "noodles", "cake", "beans", "eggs",
];
pub(super) const SPORTS: &[&str] = &[
    "tennis",
    "football",
    "chess",
    "golf",
    "hockey",
    "rugby",
    "cricket",
    "volleyball",
    "basketball",
    "handball",
];
pub(super) const COLORS: &[&str] =
    &["red", "blue", "green", "white", "black", "yellow", "brown", "orange", "gray", "pink"];
pub(super) const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
pub(super) const COUNTRIES: &[&str] = &[
    "France", "Germany", "Italy", "Spain", "Portugal", "Norway", "Sweden", "Poland", "Greece", "Egypt",
    "Kenya", "Japan", "China", "India", "Canada", "Mexico", "Brazil", "Peru", "Chile", "Turkey",
];

/// Every value that is to be copied from a question.
pub(super) fn values() -> impl Iterator<Item = &'static str> {
    [WOMEN, MEN, CITIES, JOBS, PETS, FOODS, SPORTS, COLORS, DAYS, COUNTRIES].into_iter().flatten().copied()
}

/// What the texts say about people. `{n}` is the name, `{v}` the value.
pub(super) struct Relation {
    pub(super) values: &'static [&'static str],
    pub(super) sentences: &'static [&'static str],
    pub(super) held_out_sentence: &'static str,
    /// First the plain question, which is also what a follow-up is rewritten to.
    pub(super) questions: &'static [&'static str],
    pub(super) held_out_question: &'static str,
    pub(super) answer: &'static str,
    /// A follow-up question, `{p}` is he or she, `{h}` his or her.
    pub(super) follow_ups: &'static [&'static str],
    pub(super) held_out_follow_up: &'static str,
}

pub(super) static RELATIONS: &[Relation] = &[
    Relation {
        values: CITIES,
        sentences: &[
            "{n} lives in {v}.",
            "{n} has a home in {v}.",
            "{n} moved to {v}, and lives there now.",
            "{n} is at home in {v}.",
            "The home of {n} is the city of {v}.",
            "These days {n} lives in {v}.",
        ],
        held_out_sentence: "{n} now lives in the city of {v}.",
        questions: &[
            "Where does {n} live?",
            "In which city does {n} live?",
            "What is the home of {n}?",
            "Which city is the home of {n}?",
            "Where is {n} living?",
        ],
        held_out_question: "Which city does {n} live in?",
        answer: "{n} lives in {v}",
        follow_ups: &[
            "Where does {p} live?",
            "And where does {p} live?",
            "In which city does {p} live?",
            "And what is {h} home?",
            "Which city does {p} live in?",
        ],
        held_out_follow_up: "And in which city does {p} live?",
    },
    Relation {
        values: JOBS,
        sentences: &[
            "{n} works as a {v}.",
            "{n} is a {v}.",
            "{n} has a job as a {v}.",
            "{n} became a {v} last year.",
            "The job of {n} is that of a {v}.",
            "{n} now works as a {v}.",
        ],
        held_out_sentence: "{n} found work as a {v}.",
        questions: &[
            "What is the job of {n}?",
            "What does {n} work as?",
            "Which job does {n} have?",
            "What work does {n} do?",
            "What does {n} do for a living?",
        ],
        held_out_question: "What job does {n} have?",
        answer: "{n} works as a {v}",
        follow_ups: &[
            "What is {h} job?",
            "And what is {h} job?",
            "Which job does {p} have?",
            "What does {p} work as?",
            "And what job does {p} have?",
        ],
        held_out_follow_up: "And which job does {p} have?",
    },
    Relation {
        values: PETS,
        sentences: &[
            "{n} has a pet {v}.",
            "{n} keeps a {v} as a pet.",
            "The pet of {n} is a {v}.",
            "{n} got a pet {v}.",
            "{n} lives with a pet {v}.",
            "{n} has a {v}, a nice pet.",
        ],
        held_out_sentence: "{n} owns a pet {v}.",
        questions: &[
            "Which pet does {n} have?",
            "What is the pet of {n}?",
            "What pet does {n} keep?",
            "What pet does {n} have?",
            "Which kind of pet does {n} keep?",
        ],
        held_out_question: "What kind of pet does {n} have?",
        answer: "{n} has a pet {v}",
        follow_ups: &[
            "Which pet does {p} have?",
            "And what is {h} pet?",
            "What is {h} pet?",
            "What pet does {p} have?",
            "And what pet does {p} keep?",
        ],
        held_out_follow_up: "And which pet does {p} have?",
    },
    Relation {
        values: FOODS,
        sentences: &[
            "{n} likes to eat {v}.",
            "{n} eats {v} every day.",
            "{n} often eats {v}.",
            "{n} eats a lot of {v}.",
            "For lunch {n} likes {v}.",
            "{n} wants to eat {v}.",
        ],
        held_out_sentence: "{n} loves to eat {v}.",
        questions: &[
            "What does {n} eat?",
            "What does {n} like to eat?",
            "Which food does {n} eat?",
            "What food does {n} like?",
            "Which food does {n} like to eat?",
        ],
        held_out_question: "Which food does {n} like?",
        answer: "{n} eats {v}",
        follow_ups: &[
            "What does {p} eat?",
            "And what does {p} eat?",
            "What does {p} like to eat?",
            "Which food does {p} eat?",
            "And which food does {p} like?",
        ],
        held_out_follow_up: "And what does {p} like to eat?",
    },
    Relation {
        values: SPORTS,
        sentences: &[
            "{n} plays {v}.",
            "{n} likes to play {v}.",
            "{n} plays {v} with friends.",
            "{n} often plays {v}.",
            "{n} is good at {v}.",
            "On Sunday {n} plays {v}.",
        ],
        held_out_sentence: "{n} plays {v} every week.",
        questions: &[
            "What does {n} play?",
            "Which game does {n} play?",
            "What does {n} like to play?",
            "Which game does {n} like?",
            "What game does {n} like to play?",
        ],
        held_out_question: "What game does {n} play?",
        answer: "{n} plays {v}",
        follow_ups: &[
            "What does {p} play?",
            "And what does {p} play?",
            "Which game does {p} play?",
            "And what game does {p} play?",
            "What does {p} like to play?",
        ],
        held_out_follow_up: "And which game does {p} play?",
    },
    Relation {
        values: COLORS,
        sentences: &[
            "{n} drives a {v} car.",
            "{n} has a {v} car.",
            "The car of {n} is {v}.",
            "{n} owns a {v} car.",
            "{n} has a car, and it is {v}.",
            "{n} got a new {v} car.",
        ],
        held_out_sentence: "{n} bought a {v} car.",
        questions: &[
            "Which color is the car of {n}?",
            "What color is the car of {n}?",
            "Which car does {n} drive?",
            "Which color does the car of {n} have?",
            "What is the color of the car of {n}?",
        ],
        held_out_question: "What color does the car of {n} have?",
        answer: "{n} drives a {v} car",
        follow_ups: &[
            "Which color is {h} car?",
            "And what color is {h} car?",
            "What color is {h} car?",
            "What is the color of {h} car?",
            "Which color does {h} car have?",
        ],
        held_out_follow_up: "And which color is {h} car?",
    },
];
