"""Word lists for the generated text.

Keys and values are short and frequent, so that the tokenizer makes each of them one token when a
space comes before it: a key that is one token is what a small model can look up.
"""

KEYS: tuple[str, ...] = tuple(
    """river lamp stone cloud table chair garden window bridge candle basket hammer ladder mirror
    pencil pocket rabbit saddle ticket tunnel valley wagon whale zebra anchor apple arrow badge
    banana barrel beach bell bench bird blanket boat book bottle bowl box branch bread brush bucket
    button cabin cake camel camera carpet castle chain cheese circle clock coat coin collar cookie
    corner cotton cradle crown cup curtain desk diary dish door dragon drum eagle engine fence ferry
    field finger flag flame flute forest fork fountain gate ghost glove goose grape guitar hat
    helmet hill honey horse hotel house island jacket jar jewel kettle key kite kitten knife lake
    leaf lemon letter lion lizard lock market meadow melon monkey moon motor mountain needle nest
    ocean onion orange oven owl paddle palace panda paper parrot pearl pepper piano pillow pilot
    plate pony potato puzzle rail ring road rocket roof rope rose sail sandal school shelf ship
    shoe spoon star statue storm street sugar table tent tiger tower train trumpet turtle
    vase violin wall wheel whistle wolf""".split()
)
"""What a note is about. Duplicates are dropped below."""

KEYS = tuple(dict.fromkeys(KEYS))

VALUES: tuple[str, ...] = tuple(
    """copper silver golden purple yellow green crimson scarlet amber violet ivory bronze iron steel
    tin marble velvet linen wooden plastic bamboo cardboard leather woolen ready broken hidden empty
    heavy hollow narrow shallow gentle bitter sour salty spicy frozen melted polished dusty muddy
    rusty shiny noisy silent quick lazy brave clever humble proud jolly grumpy sleepy hungry thirsty
    early late rapid steady simple tricky modern ancient royal rural urban eastern western northern
    southern lucky famous secret public private local foreign cheap costly rare common perfect
    strange plain fancy bright dim warm cool fresh stale sharp blunt round square""".split()
)
"""What a note says about its key."""

NAMES: tuple[str, ...] = tuple(
    "Anna Ben Clara David Ella Finn Grace Henry Iris Jack Kate Leo Mia Noah Olive Paul Rosa Sam Tina Will".split()
)
ANIMALS: tuple[str, ...] = tuple("fox bear mouse cat dog duck frog hen pig cow goat sheep deer crow bee ant".split())
ADJECTIVES: tuple[str, ...] = tuple("small big kind shy brave clever happy quiet young tired funny curious".split())
PLACES: tuple[str, ...] = tuple("forest village garden valley castle barn city meadow harbour cave".split())
THINGS: tuple[str, ...] = tuple("key map bell lamp coin book letter ring box flute kite boat".split())
COLOURS: tuple[str, ...] = tuple("red blue green yellow white black golden silver".split())
FOODS: tuple[str, ...] = tuple("bread soup cake apples honey cheese berries tea".split())
DAYS: tuple[str, ...] = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS: tuple[str, ...] = tuple(
    "January February March April May June July August September October November December".split()
)
