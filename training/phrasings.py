"""How people ask for each edit: a small grammar per edit, many thousand sentences, some of them held out.

`(a|b|c)` picks one branch, an empty branch is allowed, groups nest, `{c}` is the colour of a coloured edit.
Knows sentences and the names of the edits. Does not know pictures. Sentences that ask for something the model can't do
come from `training.unrelated`.
"""

# ruff: noqa: E501 (a pattern reads best on one line)
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.edits import EDITS, TINTS

PICTURE: Final = (
    "(it|this|it|it all|everything|(the|this|my|the whole|the entire|that) (photo|picture|image|pic|shot|scene|photograph)"
    "|the photo|the image|the picture)"
)
DEGREE: Final = "(||||a (bit|little|lot) |much |very |really |slightly |super |extremely |more |a little bit |way )"


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What people say for one edit. Each part may be empty.

    Attributes:
        looks: after "make it".
        things: after "turn it into".
        adds: after "give it", "add" or "apply".
        asks: whole requests.
        wants: what the picture is too much of, after "it is too": a reason that may follow any request.
    """

    looks: str = ""
    things: str = ""
    adds: str = ""
    asks: str = ""
    wants: str = ""


LOOKS: Final = (
    f"(make|make|make|make|get) {PICTURE} (|look |appear |)<>|turn {PICTURE} <>|{PICTURE} (should|must|has to) (be|look) <>"
    f"|change {PICTURE} (to|to be|so it is|so that it looks) <>|<>|<>|i want {PICTURE} (to be |to look |)<>"
    f"|edit {PICTURE} (to be|to look|so it looks) <>|let {PICTURE} be <>|same {PICTURE} but <>|(show|render) {PICTURE} <>"
    "|a <> (version|look|photo|image|picture)|give it a <> (look|feel|style)|<> (please|version|look|style|photo|picture|image)"
)
THINGS: Final = (
    f"(turn|turn|convert|convert|transform|change|make|switch) {PICTURE} (into|into|to) <>|make {PICTURE} (look|seem) like <>"
    f"|make {PICTURE} <>|<>|<>|(render|redraw|show|display|repaint|recreate|restyle) {PICTURE} (as|like|in the style of) <>"
    f"|(create|make|produce|do) <> (from|of|out of) {PICTURE}|in the style of <>|i want <>|as <>|like <>"
    f"|make {PICTURE} appear as <>|change the style to <>|i'd like {PICTURE} as <>"
)
ADDS: Final = (
    f"give {PICTURE} <>|add <>|add <> to {PICTURE}|apply <>|apply <> to {PICTURE}|put <> on {PICTURE}|use <>|<>|<>"
    f"|with <>|i want <>|i'd like <> on {PICTURE}|{PICTURE} with <>|(show|render) {PICTURE} with <>|add in <>|create <>"
    f"|let {PICTURE} have <>|{PICTURE} (needs|should have|could use) <>|introduce <>"
)

BEFORE: Final = (
    "(||||||||please |please |can you |could you |could you please |can you please |would you |hey, |hi, |now |just |i want you to "
    "|i'd like you to |kindly |let's |help me |you should |try to |ok |so |simply |go ahead and )"
)
AFTER: Final = (
    "(|||||||||||| please| please|, please| thanks|, thank you| for me| now|, but keep everything else the same"
    "| but (keep|leave) (everything else|the rest|the subject|all other details|the composition) (the same|unchanged|as it is|identical)"
    "| while keeping the (composition|subject|pose|position|person|faces|details|background)( the same| identical| unchanged|)"
    "| without changing (anything else|the composition|the subject|the content|the background)"
    "|, keep(ing|) the (person's |subject's |same |)(pose|position|composition|scale|camera angle)( identical| the same|)"
    "| and (nothing else|don't change anything else|leave the rest alone)| as if it was taken that way| in a natural way"
    "| with high quality| in high resolution| of this photo| completely| entirely| everywhere|, nothing more)"
)

REASON: Final = (
    "(,|,|, because| because| since| as|. now|. right now|:) (it is|it's|it is|it's|that is|they are|the photo is|this picture is|the image looks|it looks|it seems)"
    " (too|too|too|way too|far too|much too|so|very|a bit too|a little too|really|just too) <>"
)

LIGHT: Final = "(light|lighting|colors|colours|tones|atmosphere|mood|filter|look|effect|color grading|vibes|feel|feeling|style|tint|hues|shades)"

GRAMMARS: Final[dict[str, Grammar]] = {
    "keep": Grammar(
        asks=f"(keep|leave) {PICTURE} (the same|as it is|unchanged|as is|untouched|exactly the same|exactly as it is|alone|identical|how it is)"
        f"|keep (everything|all) (the same|as it is|unchanged|identical)|(do not|don't|never) (change|edit|modify|alter|touch) (anything|{PICTURE}|a thing)"
        f"|do nothing|change nothing|nothing|no (changes|change|edits|edit|modifications)|return {PICTURE} (unchanged|as is|as it is|untouched)"
        "|leave everything (the same|as it was|unchanged|alone|untouched)|same (picture|photo|image)|no edit needed|make no (changes|edits|change)"
        f"|keep (the original|it original|the original (photo|image|picture))|the (same|original|identical) (photo|image|picture)|just (copy|reproduce|repeat|return) {PICTURE}"
        "|identity|stay the same|everything stays the same|without any (changes|edits)|preserve (everything|the image|the photo)|(copy|reproduce) the (input|original)",
    ),
    "grayscale": Grammar(
        looks="((fully |completely |)(black and white|black & white|black-and-white|b&w|b/w|bw|grayscale|greyscale|gray scale|monochrome|monochromatic|colorless|colourless"
        "|grey|gray|desaturated|black n white|all (gray|grey)|without (any |)(color|colour)|shades of (gray|grey)))",
        things="((a |)(black and white|b&w|monochrome|grayscale|greyscale|black-and-white|classic black and white|film noir|noir) (photo|picture|image|photograph|version|film|shot|portrait)"
        "|grayscale|greyscale|black and white|black & white|monochrome|noir|b&w|bw|shades of (gray|grey))",
        adds="(a |)(black and white|b&w|grayscale|greyscale|monochrome|noir|film noir|black-and-white) (filter|look|effect|style|conversion|treatment)",
        asks=f"(remove|drop|strip|take away|take out|get rid of|delete|discard) (all |all the |the |every |any |)(color|colour|colors|colours|saturation)(| from {PICTURE})"
        f"|(desaturate|decolorize|decolor) {PICTURE}( completely| fully|)|(desaturate|decolorize)|no (color|colour|colors|colours)|(show|shoot) {PICTURE} in (grayscale|black and white|monochrome)"
        f"|drain {PICTURE} of (all |)(color|colour)|{PICTURE} in (black and white|grayscale|greyscale|b&w|monochrome)|set the saturation to zero|lose the (color|colour)s",
        wants="(colorful|colourful|distracting in color|gaudy)",
    ),
    "sepia": Grammar(
        looks="(sepia|sepia (toned|tone|colored)|vintage|antique|old|aged|old fashioned|old-fashioned|retro|brownish|brown|like an old (photo|photograph|picture)|old and (brown|brownish|yellowed)|nostalgic|very old)",
        things="(a |an |)(sepia|vintage|antique|old|aged|retro|old-time|old time|victorian|old-fashioned|19th century|nineteenth century|historic) (photo|photograph|picture|image|print|postcard|shot|portrait|daguerreotype)"
        "|sepia|sepia tones|a photo from (the |)(1900s|1920s|1890s|last century|long ago|your grandparents|the past|old times)|something from an old album",
        adds=f"(a |an |)(sepia|vintage|antique|old photo|old-fashioned|brown|brownish|aged|nostalgic|retro|old film) {LIGHT}",
        asks=f"age {PICTURE}|(tone|colour|color) {PICTURE} in (sepia|brown)|{PICTURE} in (sepia|brown tones|sepia tones)"
        f"|make {PICTURE} look (a hundred|100) years old|{PICTURE} as (an old|a vintage|a sepia) (photo|photograph|print)",
        wants="(new|modern|digital)",
    ),
    "night": Grammar(
        looks="(night|nighttime|night time|night-time|midnight|like (night|midnight|nighttime|the middle of the night)|like it was (taken|shot) at night|as if at night|nocturnal|moonlit|at night|as dark as night|late at night)",
        things="(a |)(night|nighttime|midnight|nocturnal|moonlit|night time|late night) (scene|photo|picture|image|shot|view|version|time|)|night|nighttime|midnight|the middle of the night|the night",
        adds="(a |)(night|nighttime|moonlit|midnight|moon|night sky|moonlight) (effect|look|atmosphere|mood|light|lighting|filter|setting|feel|vibe|scene)|moonlight|the darkness of night|some moonlight",
        asks=f"(change|switch|set|turn|move) (the time|time|the time of day|day|daytime|the day|the daylight) (to|into) (night|nighttime|midnight)|(from day to night|day to night|day for night|turn day into night)"
        f"|(set|put|place|show|shoot|imagine|photograph|render) {PICTURE} (at|in the|during the) (night|nighttime|midnight)|{PICTURE} (at|by) night|(at|by|during the) night|after (dark|midnight|nightfall)"
        f"|let (the night|night|darkness) fall|turn off the sun|what would {PICTURE} look like at night|under (the |a |)(moon|moonlight|full moon|night sky|stars)|lit (only |)by (the moon|moonlight)|make it night",
        wants="(sunny|early in the day|much like noon)",
    ),
    "sunset": Grammar(
        looks="((warm|golden|orange|sunny and warm|sunset|like (sunset|sunrise|a sunset|golden hour|dusk)|warmer|toasty|sunlit|at (sunset|sunrise|dusk|dawn)|warm and golden|warm toned|golden hour|hot|summery))",
        things="(a |)(sunset|sunrise|golden hour|dusk|warm|evening|golden|dawn|summer evening) (scene|photo|picture|image|shot|version)|sunset|golden hour|sunrise|a warm evening|(a |)(sunset|sunrise)",
        adds=f"(a |some |the |)(warm|golden|sunset|golden hour|orange|sunrise|warmer|evening|late afternoon|cozy|cosy|summer|autumn) {LIGHT}|the light of (the evening|a sunset|the setting sun)|(more |some |)warmth|evening sun|golden sunlight|evening sunlight|(a |the |)(sunset|setting sun)",
        asks=f"(warm up {PICTURE}|warm {PICTURE} up|warm up the (colors|colours|tones))|(raise|increase|boost) the (colour |color |white balance |)(temperature|warmth)"
        f"|(set|put|place|show|shoot|photograph) {PICTURE} (at|during|in) (sunset|sunrise|golden hour|dusk|the evening sun)|{PICTURE} (at|during) (sunset|golden hour|dusk|sunrise)"
        f"|(at|during) (sunset|golden hour|dusk|sunrise)|change the (lighting|light|time of day|time) to (sunset|golden hour|warm|evening|sunrise|dusk|orange)|bathe {PICTURE} in (golden|warm|orange|sunset) light|let the sun (set|go down)",
        wants="(cold|blue|cool|pale|sober)",
    ),
    "cold": Grammar(
        looks="(cold|cool|colder|cooler|blue|bluish|blueish|bluer|wintry|icy|frosty|frozen|chilly|freezing|like winter|arctic|cool toned|cold and blue|cool and blue|like a cold day|polar)",
        things="(a |an |)(winter|cold|icy|wintry|arctic|frosty|cool|frozen|chilly) (scene|photo|picture|image|shot|day|morning|version|landscape|mood)|winter|a winter",
        adds=f"(a |an |some |)(cold|cool|blue|bluish|icy|winter|wintry|frosty|arctic|cooler|colder|chilly|ice cold) {LIGHT}|a (cold|cool|bluish) cast|more blue|some blue",
        asks=f"(cool down {PICTURE}|cool {PICTURE} down|cool off the (colors|colours|tones))|(lower|decrease|reduce|drop) the (colour |color |white balance |)(temperature|warmth)"
        f"|change the (lighting|light|season|colors|colours|mood) to (cold|winter|blue|cool|icy)|bathe {PICTURE} in (cold|blue|icy|cool) light|(shift|push|move) the (colors|colours|tones|white balance) (to|towards|toward) blue"
        f"|{PICTURE} (on a cold day|in winter|in cold light)|make {PICTURE} feel (cold|wintry|like winter|icy|freezing)",
        wants="(warm|hot|yellow|orange|red)",
    ),
    "brighter": Grammar(
        looks=f"{DEGREE}(brighter|lighter|bright|light|brightened|overexposed|well lit|better lit|less dark|luminous|brightly lit)",
        things="(a |)(bright|brighter|lighter|light|brightly lit|well lit|high key|overexposed) (photo|picture|image|version|scene|shot)",
        adds="(some |a lot of |lots of |)(more |extra |additional |)(light|brightness|exposure|illumination)|(a |)(brighter|lighter|higher) (look|exposure|lighting)",
        asks=f"(brighten|lighten|illuminate|light up|lighten up|brighten up|overexpose) {PICTURE}( a bit| a little| a lot| up| up a bit| up a lot| more|)|(brighten|lighten|brighten up|lighten up)"
        f"|(increase|raise|boost|turn up|up|pump up|crank up|lift) the (brightness|exposure|light|lights|shadows|gamma|luminosity)( a bit| a little| a lot|)|turn on the light(s|)|turn the (brightness|lights|exposure) up"
        f"|more (light|brightness|exposure)|{PICTURE} is too dark(, fix it| fix that|)|let there be (more |)light|shine (more |a |some |)light on {PICTURE}|(higher|more) (brightness|exposure)",
        wants="(dark|dark|dark|dim|gloomy|underexposed|shadowy|murky)",
    ),
    "darker": Grammar(
        looks=f"{DEGREE}(darker|dark|dimmer|dim|underexposed|less bright|shadowy|darkened|gloomy|gloomier|dimly lit|murky)",
        things="(a |)(dark|darker|dim|underexposed|low key|gloomy|dimly lit) (photo|picture|image|version|scene|shot)",
        adds="(more |some |)(darkness|shadow|shadows)|(a |)(darker|dimmer|lower|dark|low key) (look|exposure|lighting|mood)|less (light|brightness|exposure)",
        asks=f"(darken|dim|underexpose) {PICTURE}( a bit| a little| a lot|)|(darken|dim)|(decrease|lower|reduce|turn down|cut|drop|bring down) the (brightness|exposure|light|lights|gamma|luminosity)( a bit| a little| a lot|)"
        f"|turn the (brightness|lights|light|exposure) down|dim the (light|lights)|turn (off|out) the (light|lights)|less (light|brightness|exposure)|{PICTURE} is too bright(, fix it| fix that|)|take away (some |)light|(lower|less) (brightness|exposure)",
        wants="(bright|bright|bright|light|overexposed|glaring)",
    ),
    "contrast": Grammar(
        looks=f"{DEGREE}(contrasty|contrasted|punchy|punchier|high contrast|high-contrast|dramatic|harder|more contrasty|more contrasted|crisp|more dramatic|stark)",
        things="(a |)(high contrast|high-contrast|contrasty|punchy|dramatic|stark) (photo|picture|image|version|shot)",
        adds="(some |much |a lot of |lots of |)(more |extra |additional |strong |stronger |higher |hard |high |)(contrast|punch)|(a |)(high contrast|contrasty|punchy|dramatic|high-contrast|contrast) (look|style|effect|filter|curve|boost)|(deeper|darker) (blacks|shadows) and (brighter|lighter) (whites|highlights)",
        asks=f"(increase|raise|boost|turn up|up|crank up|enhance|strengthen|pump up|maximize|push) the contrast( a bit| a little| a lot| of {PICTURE}|)|(boost|increase|enhance|more|higher|stronger|strong|high|add|maximum) contrast"
        "|make the (darks|blacks|shadows) darker and the (lights|whites|highlights) (lighter|brighter)|turn the contrast up|(stretch|steepen) the (tonal range|curve|histogram)|with more contrast",
        wants="(flat|even|lifeless|hazy|soft)",
    ),
    "invert": Grammar(
        looks="(inverted|negative|reversed in colour|colour inverted|color inverted|color-inverted|like a (film |photo |)negative)",
        things="(a |an |its |the |)(negative|film negative|photo negative|photographic negative|inverted image|inverted version|x-ray|color negative|inverted photo|negative (image|photo|picture|version))",
        adds="(an |a |)(inverted|negative|invert|inversion|color inversion|x-ray) (effect|filter|look|colors|colours)|inverted (colors|colours)|negative colors|reversed colors|opposite (colors|colours)",
        asks=f"(invert|reverse|negate|flip|swap) (the |all |all the |)(colors|colours|colour|color|tones)(| of {PICTURE}| in {PICTURE})|(invert|negate) {PICTURE}|(invert|negative|negate|inversion|inverted)"
        f"|(inverted|negative|reversed|opposite) (colors|colours)|(swap|exchange|switch) (black and white|light and dark|dark and light|blacks and whites)|(change|turn) (all |every |the |)(colors|colour|color|colours) (to|into) (its|their|the) opposite(s|)|{PICTURE} as a negative|make the (blacks white and the whites black|dark parts light and the light parts dark)",
    ),
    "vivid": Grammar(
        looks=f"{DEGREE}(vivid|colorful|colourful|vibrant|saturated|rich in colour|intense in color|more vivid|more colorful|more colourful|more vibrant|more saturated|bold|lively|poppy|livelier|eye-catching)",
        things="(a |)(vivid|vibrant|colorful|colourful|saturated|highly saturated|lively) (photo|picture|image|version|shot|scene)",
        adds="(some |much |a lot of |lots of |)(more |extra |additional |stronger |richer |intense |)(color|colour|saturation|vibrance|vibrancy|vividness)|(a |)(vivid|vibrant|saturated|colorful|colourful) (look|style|effect|filter|boost)|(vivid|vibrant|richer|stronger|bolder|more intense|intense|bold|rich|saturated|popping) (colors|colours)",
        asks=f"(increase|raise|boost|turn up|up|crank up|enhance|strengthen|pump up|intensify|amplify) the (saturation|colors|colours|color|colour|vibrance|vibrancy|color intensity)( a bit| a little| a lot| of {PICTURE}|)|saturate {PICTURE}|oversaturate( {PICTURE}|)|(boost|increase|enhance|intensify) (saturation|colors|colours|vibrance)"
        "|make the (colors|colours) (pop|stronger|vivid|more vivid|more vibrant|brighter|richer|bolder|more intense|more saturated|stand out|livelier|bright)|(more|higher|stronger) (saturation|color|colour|colors|vibrance)|let the (colors|colours) pop|turn the (saturation|colors) up|saturate|with stronger colors",
        wants="(dull|pale|grey|washed out|lifeless|boring in color)",
    ),
    "faded": Grammar(
        looks=f"{DEGREE}(faded|washed out|washed-out|pale|paler|bleached|milky|muted|matte|dull|duller|low contrast|pastel|less colorful|less saturated|less contrasty|flat|sun bleached|sun-bleached|hazy|soft and pale)",
        things="(a |)(faded|washed out|washed-out|bleached|pale|muted|low contrast|matte|pastel|sun-bleached) (photo|picture|image|version|shot|print|photograph|film)",
        adds="(a |some |)(faded|washed out|washed-out|pale|muted|matte|milky|bleached|pastel|low contrast|fade|hazy) (look|style|effect|filter|tones|colors|colours|finish|film look)|(weaker|softer|paler|muted|pastel|less intense|duller) (colors|colours)|less contrast|less saturation",
        asks=f"(fade|bleach|mute|wash out) {PICTURE}( out| a bit| a little|)|(fade|bleach|mute|wash out|soften|tone down) the (colors|colours|tones)|(decrease|lower|reduce|turn down|drop) the (contrast|saturation|contrast and saturation|vibrance)( a bit| a little| a lot|)|(less|lower|low|reduce|decrease) (contrast|saturation|vibrance)|fade out|faded (colors|colours)|lift the blacks|let the colors fade|make the (colors|colours) (fade|paler|weaker|pale|muted|duller|less intense)",
        wants="(colorful|colourful|garish|loud|strong|saturated|contrasty)",
    ),
    "blur": Grammar(
        looks=f"{DEGREE}(blurry|blurred|blurrier|out of focus|soft|softer|unsharp|fuzzy|fuzzier|unfocused|hazy and blurred|smudged|smooth and blurry|defocused|less sharp|not sharp)",
        things="(a |an |)(blurred|blurry|out of focus|out-of-focus|defocused|fuzzy|unsharp|soft focus) (photo|picture|image|version|shot)|a blur",
        adds="(a |some |strong |a strong |more |a gaussian |gaussian |a soft |heavy |)(blur|blurring|softness|defocus|fuzziness)|(a |)(blur|gaussian blur|soft focus|defocus|blurry|out of focus|out-of-focus) (effect|filter|look)",
        asks=f"(blur|defocus|unfocus|soften|smudge|smear) {PICTURE}( a bit| a little| a lot| completely| out|)|(blur|defocus|gaussian blur|soften|blurred|unsharp)|blur (everything|the entire frame|all of it|it all|the whole thing)|(lose|remove|reduce|decrease) (the |)(sharpness|focus|detail|details)|{PICTURE} out of focus|(smooth|smoothen) (out |)(all |the |all the |)(detail|details|{PICTURE})|less (sharp|sharpness|detail)",
        wants="(sharp|detailed|crisp|harsh)",
    ),
    "sketch": Grammar(
        looks="(like (a |)(sketch|drawing|pencil drawing|pencil sketch)|sketchy|hand drawn|hand-drawn|drawn|drawn (with|in|by) (pencil|a pencil|graphite)|sketched)",
        things="(a |an |)((pencil|graphite|charcoal|hand drawn|hand-drawn|line|pen|ink|simple|black and white|detailed|rough|quick|artist's) |)(sketch|drawing|line drawing|line art|pencil drawing|pencil sketch|draft)|line art|lineart|pencil art|a pencil portrait|an outline drawing",
        adds="(a |)(pencil|sketch|pencil sketch|drawing|drawn|charcoal|line art|hand drawn|graphite|pencil drawing|ink) (effect|look|style|filter|version)",
        asks=f"(draw|sketch|redraw|trace|outline) {PICTURE}( with a pencil| in pencil| by hand| with pencil| on paper| in graphite|)|(draw|sketch|pencil sketch|pencil drawing|line art)|(show|draw|keep) only the (outlines|lines|edges|contours)|{PICTURE} (in pencil|drawn in pencil|as a drawing|as line art|as a pencil sketch|drawn by hand)|use (a pencil|pencils|pencil strokes|only lines)",
        wants="(photographic|realistic)",
    ),
    "poster": Grammar(
        looks="(posterized|posterised|cartoonish|cartoon-like|like a cartoon|like a comic|like a comic book|like a poster|flat coloured|comic-like|cartoony|like pop art|toon shaded|cel shaded|animated)",
        things="(a |an |)(cartoon|comic|comic book|poster|pop art poster|pop art|screen print|screenprint|silkscreen|anime|cel shaded picture|comic strip|posterized image|cartoon drawing|cartoon image|cartoon picture|cartoon version|comic panel|vector graphic|vector art|vector illustration|graphic novel page|flat illustration|illustration|pop-art print)|anime",
        adds="(a |an |)(cartoon|comic|comic book|poster|posterize|posterise|posterization|pop art|pop-art|cel shading|toon|toon shading|screen print|anime|vector|warhol|andy warhol) (effect|look|style|filter|shading)|posterization|cel shading",
        asks=f"(posterize|posterise|cartoonize|cartoonise|toonify|cartoonify) {PICTURE}|(posterize|posterise|posterization|cartoonize|cartoon|toonify|pop art|comic)|(reduce|limit|cut) (the number of |{PICTURE} to a few |the |to a few |)(colors|colours|color levels|tones)|use only (a few|four|some|flat|few) (colors|colours|flat colors)|(flat|few) (colors|colours)|{PICTURE} (as a cartoon|as a comic|in pop art style|in cartoon style|as a poster|in comic style)|quantize the (colors|colours)",
        wants="(realistic|detailed|serious)",
    ),
    "pixelate": Grammar(
        looks=f"{DEGREE}(pixelated|pixelized|pixellated|pixelised|blocky|8-bit|8 bit|eight bit|like minecraft|like a video game from the eighties|low resolution|low-res|low res|like pixel art|mosaic-like|pixely|pixelly|censored)",
        things="(a |an |)(pixel art|pixel image|mosaic|pixelated (image|photo|picture|version)|8-bit (game|image|picture|graphic|art|version)|8 bit (game|image|picture)|retro (video |)game|low resolution image|low-res image|lego picture|old video game|minecraft picture|blocky picture|pixel mosaic)|pixel art|pixels|big pixels|blocks|squares|large blocks|big squares",
        adds="(a |an |some |)(pixel|pixelate|pixelated|pixelation|pixel art|8-bit|8 bit|mosaic|censor|blocky|pixellate|low res) (effect|look|style|filter|mosaic)|pixelation|(big|large|huge|visible|chunky) pixels|a mosaic|square blocks",
        asks=f"(pixelate|pixelize|pixellate|pixelise|censor) {PICTURE}|(pixelate|pixelize|pixelation|pixel art|pixelated|pixellate)|(lower|reduce|decrease|drop|downgrade) the (resolution|pixel count)( a lot| heavily|)|{PICTURE} (in|with|made of|made out of|built from) (big |large |chunky |square |)(pixels|blocks|squares)|show (the |big |)pixels|break {PICTURE} into (blocks|squares|pixels)|enlarge the pixels",
        wants="(detailed|recognizable|smooth|sharp)",
    ),
    "vignette": Grammar(
        looks="(vignetted|dark (at|around|along|near) the (edges|corners|borders|sides)|darker (at|around|along|near|towards|toward) the (edges|corners|borders|sides)|darkened (at|around) the (edges|corners))",
        things="(a |)(vignette|vignetted (photo|picture|image)|photo with (a vignette|dark edges|dark corners))",
        adds="(a |an |some |)((dark|black|strong|soft|oval|round|subtle|heavy|nice|lens|classic) |)(vignette|vignetting)( effect| filter| look| around the edges| around it|)|(dark|darker|darkened|black|shadowy) (edges|corners|borders)|a spotlight (on|in) the (center|centre|middle)|a spotlight|a dark (edge|border) that fades|shadows around the edges",
        asks=f"(darken|dim|shade|fade) the (edges|corners|borders|outer parts|outside|sides|edges and corners|periphery)( of {PICTURE}|)|(vignette|vignetting|vignette effect|add vignette)|vignette {PICTURE}|{PICTURE} with (a vignette|dark edges|dark corners|vignetting)|fade {PICTURE} to (black|dark) (at|towards|toward|around) the (edges|corners)|(make|turn) the (edges|corners) (dark|darker|black)|(focus|light) only the (center|centre|middle)",
        wants="(bright at the edges|bright in the corners|even)",
    ),
    "bokeh": Grammar(
        looks="(like (a portrait lens|it was shot with a wide open lens|portrait mode)|dreamy|with (a |)(shallow depth of field|bokeh)|bokeh)",
        things="(a |)(bokeh (photo|picture|image|shot|portrait)|shallow depth of field (photo|shot|picture)|portrait mode (photo|shot|picture)|dreamy portrait)",
        adds="(a |some |soft |beautiful |nice |warm |)(bokeh|bokeh background|bokeh effect|bokeh light effect|bokeh lights|light bokeh|bokeh balls|shallow depth of field|depth of field effect|depth of field|blurred background|portrait mode effect|portrait mode|blurry background|fairy lights in the background|soft lights in the background|glowing lights|discs of light|light circles|dreamy lights|out of focus lights|background lights|background blur)",
        asks="(replace|change|swap|turn|fill) the background (with|to|for|into) (a |some |soft |)(bokeh|bokeh light effect|bokeh effect|bokeh lights|blurred lights|blur of lights|soft lights|lights|glowing lights)"
        "(|, zooming in on the subject|, zoom in on the subject|, zooming in a little)(|, keeping the (person's |subject's |same |)(pose|pose, position|pose, position, scale|pose, position, scale, and camera angle|position and scale|face)( identical| the same|))(|. only change the (surrounding environment|surroundings|background|environment))"
        "|replace the background with a bokeh light effect, zooming in on the subject, keeping the person’s pose, position, scale, and camera angle identical. only change the surrounding environment."
        "|(blur|defocus|soften) the (background|surroundings|backdrop|environment|area around the subject|background and add lights)|bokeh|(portrait mode|shallow depth of field)|put the background out of focus|(focus on|emphasize|zoom in on|zoom into|isolate) the (subject|person|center|centre|main subject)(| and blur the (background|rest|surroundings))"
        "|background (bokeh|blur)|make the background (blurry|out of focus|blurred|soft|dreamy|a bokeh|full of lights|bokeh)|keep the subject (sharp|in focus) and blur the (background|rest)|zoom in( a little| a bit|)( and add (bokeh|soft lights)|)",
        wants="(busy behind|distracting behind the subject|messy in the background)",
    ),
    "frame": Grammar(
        adds="(a |a |a |an |one |)((thick|thin|plain|simple|solid|bold|nice|wide|square|bright|clean|) |)({c}|{c}|{c} colored|{c} coloured) (frame|frame|border|border|edge|picture frame|outline|edging|photo frame|margin|mat)( around {P}| around the edges| around it|)"
        "|(a |)(frame|border) (in|of) {c}|(a |)(frame|border) (that is|which is) {c}|{c} (frame|border|borders|edges)",
        asks="(frame|border|surround|outline|edge|enclose|wrap) {P} (in|with) ({c}|a {c} (frame|border|line|edge|band))|(put|place|hang|set|draw|paint) {P} (in|into|inside) a {c} (frame|border)|(put|draw|paint|place|wrap|lay) (a|one) {c} (frame|border|line|edge|band|box) around {P}"
        "|(color|colour|paint|make|turn) the (edges|border|borders|frame|outer edge|margins) {c}|{c} (frame|border)|{P} (with|in) a {c} (frame|border)|frame in {c}|(frame|border), {c}|a frame, {c}",
    ),
    "tint": Grammar(
        looks="(all |completely |entirely |totally |)({c}|{c}) (toned|tinted|monochrome|hued)|(tinted|toned) (in |)({c})|all {c}|completely {c}",
        things="(shades|tones|hues) of {c}|(a |)({c} monochrome|{c} duotone|{c} tinted) (photo|image|picture|print)|{c} and black|a cyanotype in {c}",
        adds="(a |an |some |)(strong |) ({c}) (tint|color filter|colour filter|filter|tone|hue|wash|colour cast|color cast|monochrome|overlay|cast|duotone|color overlay|color grading|light|glow|colour overlay|gel)",
        asks="(tint|tone|stain|dye|wash|shade|colorize|colourise) {P} ({c}|in {c}|with {c})|(color|colour|paint) (everything|the whole picture|the whole image|it all) {c}|{c} (tint|monochrome|filter|duotone|wash)|(show|print|render) {P} in ({c}|shades of {c}|{c} tones|{c} monochrome)|{P} in (shades of {c}|{c} monochrome|{c} tones)|tint {c}|(only|just|nothing but) {c}( everywhere|)|use (only|nothing but|just) {c}( tones| hues| shades|)|(one|a single) (color|colour)(,| only,) {c}|{P} in {c} (only|alone)|no colour but {c}|look through {c} glass|through a {c} filter|everything in {c}",
    ),
}

# Asked in the exam and in the tests, never in training: known words in sentences that the grammar must not produce.
HELD_OUT: Final[dict[str, tuple[str, ...]]] = {
    "keep": ("leave the picture exactly as it is, thanks", "please do not modify a thing in this photo"),
    "grayscale": (
        "make the photo black and white like a classic film",
        "take all the colour out of this picture please",
    ),
    "sepia": ("make this look like an old sepia photograph", "give my photo an antique brown tone"),
    "night": ("make it look like this was taken in the middle of the night", "change the scene from day to night time"),
    "sunset": ("make the whole scene glow like golden hour at sunset", "give the image a warm evening sunlight look"),
    "cold": ("make the image feel like a cold blue winter day", "add a cold icy blue mood to the shot"),
    "brighter": ("brighten this photo up a lot, it is too dark", "please make the entire image a lot lighter"),
    "darker": ("darken this photo a lot, it is too bright", "please lower the exposure so it gets darker"),
    "contrast": ("boost the contrast so it looks more punchy", "give this photo a lot more contrast"),
    "invert": ("invert all colors like a photo negative", "swap every colour for its opposite, a negative"),
    "vivid": ("make all the colours more vivid and saturated", "boost the saturation so that the colors pop"),
    "faded": ("make the colours look faded and washed out", "give this a pale washed-out matte look"),
    "blur": ("blur the entire picture so that it is out of focus", "make this photo really soft and blurry"),
    "sketch": ("turn this photo into a hand drawn pencil sketch on paper", "redraw the scene as a pencil line drawing"),
    "poster": ("turn my picture into a flat cartoon poster", "posterize this photo like a comic book"),
    "pixelate": (
        "pixelate the photo into big square blocks",
        "make it look like 8-bit pixel art from an old video game",
    ),
    "vignette": ("add a soft dark vignette around the corners", "darken the corners of the photo with a vignette"),
    "bokeh": ("blur the background and fill it with soft bokeh lights", "give the portrait a dreamy bokeh background"),
    "frame": ("put a thick {c} border all around this picture", "add a simple {c} frame to my photo"),
    "tint": ("apply a strong {c} tint to the whole picture", "show the scene only in shades of {c}"),
}


def words(sentence: str) -> str:
    """The sentence in lower case without punctuation: two sentences that differ only there are the same."""
    return " ".join(re.findall(r"[a-z0-9]+", sentence.lower()))


HELD_OUT_WORDS: Final = frozenset(
    words(sentence.replace("{c}", colour))
    for sentences in HELD_OUT.values()
    for sentence in sentences
    for colour in ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black", "grey")
)


def expand(pattern: str, rng: np.random.Generator) -> str:
    """One random sentence of a pattern of nested `(a|b)` groups."""
    innermost = re.compile(r"\(([^()]*)\)")
    while match := innermost.search(pattern):
        branches = match[1].split("|")
        pattern = pattern[: match.start()] + branches[rng.integers(len(branches))] + pattern[match.end() :]
    branches = pattern.split("|")
    return branches[rng.integers(len(branches))]


def _request(grammar: Grammar, rng: np.random.Generator) -> str:
    """A request without courtesies: one of the grammar's parts, put into one of that part's sentences."""
    forms = [
        (frame, part)
        for frame, part in (
            (LOOKS, grammar.looks),
            (THINGS, grammar.things),
            (ADDS, grammar.adds),
            ("<>", grammar.asks),
        )
        if part
    ]
    frame, part = forms[rng.integers(len(forms))]
    return expand(frame, rng).replace("<>", expand(f"({part})", rng), 1)


def _mistyped(sentence: str, rng: np.random.Generator) -> str:
    """As fingers leave it: a letter lost, doubled or swapped; capitals; a full stop or none."""
    if rng.random() < 0.1 and len(sentence) > 8:
        at = int(rng.integers(1, len(sentence) - 2))
        kind = rng.integers(3)
        if kind == 0:
            sentence = sentence[:at] + sentence[at + 1 :]
        elif kind == 1:
            sentence = sentence[:at] + sentence[at] + sentence[at:]
        else:
            sentence = sentence[:at] + sentence[at + 1] + sentence[at] + sentence[at + 2 :]
    case = rng.random()
    if case < 0.3:
        sentence = sentence[:1].upper() + sentence[1:]
    elif case < 0.34:
        sentence = sentence.upper()
    end = rng.random()
    return sentence + ("." if end < 0.25 else "!" if end < 0.3 else " " if end < 0.32 else "")


def phrase(edit: str, rng: np.random.Generator) -> str:
    """A random training sentence for one of `EDITS`, never a held-out one."""
    kind, _, colour = edit.partition(" ")
    assert edit in EDITS, f"no edit is called {edit!r}"
    while True:
        sentence = _request(GRAMMARS[kind], rng)
        if rng.random() < 0.4:
            sentence = expand(BEFORE, rng) + sentence
        if GRAMMARS[kind].wants and rng.random() < 0.12:
            sentence = sentence + expand(REASON, rng).replace("<>", expand(GRAMMARS[kind].wants, rng))
        elif rng.random() < 0.4 and kind != "keep":
            sentence = sentence + expand(AFTER, rng)
        sentence = sentence.replace("{P}", expand(PICTURE, rng)).replace("{c}", colour)
        if rng.random() < 0.3:
            sentence = sentence.replace("grey", "gray")
        sentence = _mistyped(" ".join(sentence.split()), rng)
        if words(sentence) not in HELD_OUT_WORDS:
            return sentence


def held_out(edit: str) -> tuple[str, ...]:
    """The exam's sentences for one of `EDITS`."""
    kind, _, colour = edit.partition(" ")
    return tuple(sentence.replace("{c}", colour) for sentence in HELD_OUT[kind])


assert set(GRAMMARS) == {name.partition(" ")[0] for name in EDITS}
assert all(f"tint {colour}" in EDITS for colour in TINTS)
