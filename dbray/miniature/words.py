"""English words that the tokenizer has besides those of its captions.

Owns two lists: words that users are likely to write in a prompt (the DreamBooth benchmark's own
words first), and short strings that look rare but have a meaning, so that none is an identifier.
"""

from __future__ import annotations

_ENGLISH = """
    backpack stuffed animal bowl can candle cat clock sneaker dog toy boot glasses cartoon teapot
    vase berry bear plushie duck fancy colorful shiny monster pink sunglasses poop emoji rc car
    robot red sloth wolf grey cobblestone street fabric wooden floor city background mountain blue
    house purple rug forest wheat field tree autumn leaves eiffel tower floating top water ocean
    milk green grass sunflowers around mirror sidewalk crowded dirt road white wet cube shaped
    wearing santa hat rainbow scarf black monocle chef outfit firefighter police yellow shirt
    wizard jungle snow beach photo painting sketch style bird fish rabbit turtle elephant horse cow
    sheep pig goat lion tiger fox deer monkey panda koala owl eagle penguin parrot swan frog snake
    lizard dragon dinosaur whale shark dolphin crab snail bee butterfly ant spider mouse hamster
    squirrel hedgehog puppy kitten corgi poodle retriever terrier husky beagle siamese persian
    person man woman boy girl child baby people face hand eye head hair body smile
    bag bottle box book bed bench bicycle bike boat bus cake camera chair coat computer couch cup
    desk doll door dress drum fork glove guitar jacket jar key kettle kite knife lamp laptop
    lantern mug necklace pan pants pen phone piano pillow plane plate pot purse ring rocket sandal
    ship shoe sofa spoon statue table train truck umbrella van violin wallet watch wheel window
    apple banana bread burger carrot cheese cherry coffee cookie corn egg grape lemon mushroom
    orange peach pear pepper pie pizza potato pumpkin rice salad sandwich soup strawberry tea
    tomato flower rose tulip daisy cactus palm bush plant leaf rock stone sand mud ice fire smoke
    cloud rain storm rainbow sun moon star sky space planet earth sea lake river waterfall pond
    island hill valley cave cliff volcano desert garden park farm village town bridge castle church
    temple palace tower wall roof room kitchen bathroom bedroom office school library museum shop
    market station airport stadium studio theater stage
    small big large tiny huge little tall short long wide thin thick round square flat fat old new
    young ancient modern vintage clean dirty dry hot cold warm cool bright dark light heavy soft
    hard smooth rough fluffy furry hairy spotted striped patched plain golden silver bronze metal
    wood glass plastic paper leather cotton wool silk brick concrete marble gold copper brown gray
    beige cyan teal turquoise violet magenta maroon navy olive cream
    happy sad angry scared surprised sleepy sleeping tired excited calm crying laughing smiling
    cute beautiful pretty ugly funny scary strange magical mysterious cozy colourful realistic
    detailed blurry sharp
    sitting standing running walking jumping flying swimming eating drinking playing reading
    dancing singing driving riding climbing looking holding carrying lying swinging cooking resting
    the this that these those his her its their my your our he she it they we you i me him them
    and or but not no yes with without in on at of to for from by as into onto over under above
    below behind between beside near far front back left right inside outside across along through
    up down out off again very more most some any all both each many few one two three four five
    six seven eight nine ten is are was were be being has have had do does did will would could
    should may might must let make made take taken get go went come see seen look like want need
    picture image photograph portrait drawing illustration poster painted watercolor pastel oil ink
    pencil crayon charcoal sculpture mosaic collage render rendering pixel digital art artist
    cinematic film movie anime comic cubism impressionism surrealism realism baroque renaissance
    van gogh monet picasso rembrandt vermeer michelangelo hokusai warhol dali matisse klimt banksy
    vincent claude pablo leonardo pierre auguste renoir johannes pop expressionist abstract minimal
    view closeup close macro wide angle bottom side seen shot scene high quality low best
    resolution lens focus bokeh lighting sunset sunrise morning noon evening night day winter
    spring summer christmas halloween birthday party wedding hat cap crown helmet tie bow suit
    uniform costume mask boots shoes socks cape robe apron ribbon collar bandana beret cowboy
    pirate astronaut doctor nurse soldier knight king queen prince princess superhero clown
"""

_ABBREVIATIONS = """
    bbc cbs cnn nbc pbs mtv hbo npr bmw bmx dvd pdf png gif jpg tv pc cd dj vs mr mrs ms dr st nd
    rd th km kg cm mm ml hr hrs min sec ft lb lbs jr sr phd nfl nba mlb nhl ncs fbi cia nsa nyc
    nyt sms gps gpu cpu ssd hdd lcd rgb html http www xml sql php css npm bbq rpg fps mph kph rpm
    llc ltd inc gmbh nth pls plz thx btw brb lmk tbh hmm shh brr psst tsk pst grr
    crt ctrl pwr std dns tcp ssh vpn wwf wwe wtc ndc rpc vhs vcr vcd bff
    gcc ghz khz mhz mcd mbps kb mb gb tb nh nj nm nv nd md mt vt tx ct wv dc bc hk nz fr gb jp kr
"""

ENGLISH: tuple[str, ...] = tuple(_ENGLISH.split())
ABBREVIATIONS: frozenset[str] = frozenset(_ABBREVIATIONS.split())
