"""The concepts of the captioned data sets: their names, and descriptions that use none of the names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """The phrases by which a caption refers to one concept.

    Attributes:
        names: the concept's own and its synonyms; a caption that uses one is direct.
        descriptions: none of the names in them; a caption that uses one is indirect.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]


# No 'Shirt': at 16x16 pixels it cannot be told from t-shirt, pullover and coat.
CLOTHES: dict[str, Concept] = {
    "t-shirt": Concept(
        ("t-shirt", "tee", "singlet", "undershirt"),
        (
            "a light cotton top with short sleeves",
            "what a fan buys at a concert with the name of the band",
            "summer wear for the upper body",
            "thin clothing with sleeves that end above the elbow",
            "the upper half of a football kit",
            "what one sleeps in on hot nights",
        ),
    ),
    "trouser": Concept(
        ("trouser", "pants", "jeans", "slacks", "chinos"),
        (
            "clothing that covers both legs down to the ankles",
            "two long tubes of cloth joined at the waist",
            "what is held up by a belt",
            "the lower half of a suit",
            "blue denim for cowboys from the hips downwards",
            "what boys put on their legs for school",
        ),
    ),
    "pullover": Concept(
        ("pullover", "sweater", "jumper", "sweatshirt"),
        (
            "a warm knitted top drawn over the head",
            "wool for cold evenings without any buttons",
            "what grandmother knits for christmas",
            "a thick soft layer under the jacket",
            "long sleeved knitwear of a fisherman",
            "cosy wear with a round collar for autumn",
        ),
    ),
    "dress": Concept(
        ("dress", "gown", "frock", "sundress"),
        (
            "one piece of clothing with a skirt",
            "what the bride puts on",
            "evening wear for a ball",
            "worn by ladies from the shoulders to the knees",
            "what a princess dances in",
            "a long narrow cut for women without legs apart",
        ),
    ),
    "coat": Concept(
        ("coat", "overcoat", "parka", "anorak", "raincoat"),
        (
            "outerwear with a zip for winter",
            "the layer against wind and rain over everything else",
            "buttoned in front and hung up at the door",
            "what a detective turns up the collar of",
            "heavy cloth with long sleeves for walks in snow",
            "what one takes off first on coming home",
        ),
    ),
    "sandal": Concept(
        ("sandal", "flipflop", "slingback", "espadrille"),
        (
            "open footwear with straps",
            "what shows the toes",
            "what one has on the feet at the beach",
            "roman soldiers marched in these",
            "airy soles for hot days",
            "thin straps and a heel for the feet of a dancer",
        ),
    ),
    "sneaker": Concept(
        ("sneaker", "trainer", "plimsoll", "gumshoe"),
        (
            "low sports footwear with laces",
            "what runners tie before a race",
            "rubber soles for the tennis court",
            "what is worn in the gym on the feet",
            "flat canvas footwear of skaters",
            "what a marathon is run in",
        ),
    ),
    "bag": Concept(
        ("bag", "handbag", "purse", "satchel", "tote"),
        (
            "something with a handle to carry things in",
            "where a lady keeps her keys and her wallet",
            "a leather container with a shoulder strap",
            "what thieves snatch from the arm",
            "luggage for a short trip",
            "what is full after shopping",
        ),
    ),
    "ankle boot": Concept(
        ("ankle boot", "bootie", "chelsea", "wellington"),
        (
            "footwear that reaches above the ankle",
            "high leather for mud and snow",
            "what hikers put on their feet",
            "what riders put into the stirrup",
            "tall footwear with a heel for winter",
            "what a soldier polishes every morning",
        ),
    ),
}

DIGITS: dict[str, Concept] = {
    "0": Concept(("0", "zero", "nought", "nil"), ("an empty ring", "the count of nothing", "a closed oval")),
    "1": Concept(("1", "one", "unity", "single"), ("an upright stroke", "the first number to count", "a plain pole")),
    "2": Concept(
        ("two", "pair", "couple"), ("a swan with a flat foot", "the smallest even number", "how many eyes a face has")
    ),
    "3": Concept(
        ("three", "trio", "triple"), ("two bows open to the left", "how many sides a triangle has", "half a dozen halved")
    ),
    "4": Concept(
        ("four", "quartet", "quadruple"), ("a chair upside down", "how many legs a horse has", "the sides of a square")
    ),
    "5": Concept(("5", "five", "quintet", "fiver"), ("a hook under a flat cap", "the fingers of a hand", "half of ten")),
    "6": Concept(("6", "six", "sextet", "sixer"), ("a loop with a tail upwards", "the faces of a die", "half a dozen doubled")),
    "7": Concept(("7", "seven", "septet", "sevener"), ("a roof with a slanted post", "the days of a week", "what luck counts")),
    "8": Concept(("8", "eight", "octet", "eighter"), ("two rings stacked", "the legs of a spider", "a snowman without a hat")),
    "9": Concept(
        ("9", "nine", "nonet", "niner"), ("a loop with a tail downwards", "the lives of a cat", "ten without its last")
    ),
}
