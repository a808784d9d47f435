"""What text in a language looks like: lengths of words, words with a letter, and its commonest words.

The figures are those with which FineWeb-2 was filtered (Penedo et al. 2025, arXiv 2506.20920; configs of
github.com/huggingface/fineweb-2 at 7bdf8fc, Apache-2.0). English is Gopher's (Rae et al. 2021, table A1).
"""

from typing import NamedTuple


class LanguageFacts(NamedTuple):
    """What text in a language looks like.

    Attributes:
        min_word_length, max_word_length: bounds of the mean length of a word, in characters.
        min_alphabetic_words: smallest share of words with a letter.
        stop_words: some of which every text has, separated by spaces; none where words are joined to their endings.
    """

    min_word_length: float
    max_word_length: float
    min_alphabetic_words: float
    stop_words: str


FACTS = {
    "af": LanguageFacts(
        3,
        11,
        0.707,
        "die van in en is n het wat sy op the word",
    ),
    "am": LanguageFacts(
        1,
        24,
        0.824,
        "ነው እና ምሳሌ ላይ ነበር ውስጥ ግን ወደ ልጆች እንደ የአማርኛ ወይም ነገር በኋላ ጊዜ ቀን ሲሆን ጋር ዘመን እስከ ይህ ትርጉሙ የኢትዮጵያ",
    ),
    "ar": LanguageFacts(
        2,
        9,
        0.787,
        "في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد",
    ),
    "az": LanguageFacts(
        3,
        13,
        0.725,
        "və ilə ildə bir bu azərbaycan olan üçün sonra də kimi il isə o görə da tərəfindən çox ki onun "
        "edir idi",
    ),
    "be": LanguageFacts(
        3,
        11,
        0.72,
        "і у ў з на года да годзе па ад за быў не што для таксама а яго як вобласці пасля",
    ),
    "bg": LanguageFacts(
        3,
        10,
        0.756,
        "на и в е от за се с през да по",
    ),
    "bn": LanguageFacts(
        3,
        24,
        0.8,
        "এবং ও হয় করে একটি তিনি করা থেকে",
    ),
    "bs": LanguageFacts(
        1,
        16,
        0.764,
        "je i u se na su od za da godine",
    ),
    "ca": LanguageFacts(
        2,
        11,
        0.832,
        "de el la a i d en que va els per un les una amb es",
    ),
    "cs": LanguageFacts(
        3,
        11,
        0.781,
        "v a se na je z s do",
    ),
    "da": LanguageFacts(
        3,
        11,
        0.798,
        "i og af en til er den at som på for med det blev var der fra de han et",
    ),
    "de": LanguageFacts(
        0,
        15,
        0.774,
        "der und die in von im den des mit das er dem als wurde für",
    ),
    "el": LanguageFacts(
        3,
        11,
        0.809,
        "του και το της η την από ο με τον να που των στην για στο σε είναι τη τα οι",
    ),
    "es": LanguageFacts(
        3,
        14,
        0.825,
        "de la en el y a que del los se por un con una las su",
    ),
    "et": LanguageFacts(
        3,
        13,
        0.722,
        "ja on oli ta aastal eesti ka ning et mis kui aasta ei või see oma tema",
    ),
    "eu": LanguageFacts(
        4,
        11,
        0.788,
        "eta da ziren zen bat zuen zeuden izan",
    ),
    "fa": LanguageFacts(
        2,
        9,
        0.812,
        "در و به از که است این را با یک",
    ),
    "fi": LanguageFacts(
        3,
        14,
        0.755,
        "ja on oli hän vuonna myös joka se ei sen ovat sekä mutta että tai vuoden kanssa hänen jälkeen the",
    ),
    "fr": LanguageFacts(
        2,
        11,
        0.812,
        "de la le et à en des du les est un une il dans par au",
    ),
    "gl": LanguageFacts(
        1,
        10,
        0.824,
        "de a e o en que do da un no os na é unha como",
    ),
    "gu": LanguageFacts(
        3,
        22,
        0.812,
        "છે અને આ જ એક આવેલા તેમ કે ગામમાં પણ માટે ખેતી આવે કરવામાં ભાગમાં તે હતી હતા પર મુખ્ય હતો જે "
        "ભારત હતું આવેલું ગામ સાથે ગુજરાત કરી રાજ્યના પશ્ચિમ દેશના તરીકે દ્વારા મુખ્યત્વે જેવી પ્રાથમિક "
        "અન્ય શાળા હોય એ પશુપાલન ગામના ખેતમજૂરી આંગણવાડી વ્યવસાય પંચાયતઘર ડેરી કરે પ્રાપ્ય દૂધની સવલતો "
        "લોકોનો તાલુકામાં જિલ્લામાં",
    ),
    "he": LanguageFacts(
        2,
        9,
        0.799,
        "של את על הוא עם בשנת גם היה היא לאחר לא ידי בין או כי",
    ),
    "hi": LanguageFacts(
        2,
        21,
        0.837,
        "के में है की और से का को एक हैं पर",
    ),
    "hr": LanguageFacts(
        2,
        11,
        0.751,
        "je u i se na su za od s a",
    ),
    "hu": LanguageFacts(
        3,
        15,
        0.766,
        "a az és is egy volt hogy nem meg de magyar első el között",
    ),
    "hy": LanguageFacts(
        4,
        11,
        0.778,
        "է և են էր թվականի թվականին որ իր ծրագիր նա նաև որը այն հետ համար ու նրա այդ առաջին մի էին իսկ որպես",
    ),
    "id": LanguageFacts(
        3,
        12,
        0.805,
        "dan yang di pada dari ini dengan adalah untuk dalam",
    ),
    "is": LanguageFacts(
        2,
        13,
        0.8,
        "og í á að sem er var til við en af um hann með",
    ),
    "it": LanguageFacts(
        3,
        21,
        0.807,
        "di e il la in a del che è della un per nel con da i una",
    ),
    "ja": LanguageFacts(
        1,
        6,
        0.759,
        "の に を は た て が と で 年 し 月 れ さ",
    ),
    "ka": LanguageFacts(
        3,
        13,
        0.754,
        "და წლის წელს იყო რომელიც რომ მისი შემდეგ რესურსები ინტერნეტში ამ იგი არ the როგორც საქართველოს",
    ),
    "kk": LanguageFacts(
        3,
        12,
        0.694,
        "және су бойынша мен жылы коды өзен орналасқан мәліметтер жер бұл саны тұрғындарының адамды оның "
        "болып алып мемлекеттік құрайды жаңа ол гз бар жатқан",
    ),
    "km": LanguageFacts(
        2,
        13,
        0.905,
        "មាន បាន ដែល ជា និង នៅ របស់ ក្នុង ថា នេះ នៃ ហើយ ទៅ ដោយ",
    ),
    "kn": LanguageFacts(
        3,
        67,
        0.783,
        "ಮತ್ತು ಈ ಒಂದು ಎಂದು ಅಥವಾ ಅವರು ಇದು ಹಾಗೂ ಅವರ ಎಂಬ ಮೇಲೆ ನಂತರ ತನ್ನ ಆದರೆ ತಮ್ಮ ರಲ್ಲಿ ಮೂಲಕ ಹೆಚ್ಚು",
    ),
    "ko": LanguageFacts(
        1,
        6,
        0.791,
        "",
    ),
    "lo": LanguageFacts(
        2,
        9,
        0.85,
        "ແລະ ໃນ ຂອງ ເປັນ ທີ່ ໄດ້ ມີ",
    ),
    "lt": LanguageFacts(
        3,
        12,
        0.688,
        "m ir buvo į nuo iš d su yra lietuvos a iki o kaip kad apie po km",
    ),
    "lv": LanguageFacts(
        2,
        13,
        0.727,
        "un ir no ar gadā gada par bija arī",
    ),
    "mk": LanguageFacts(
        2,
        10,
        0.781,
        "на во и од се за со е година да како",
    ),
    "ml": LanguageFacts(
        4,
        37,
        0.774,
        "ഒരു ഈ ൽ എന്ന ഇത് അദ്ദേഹം നിന്ന് ചെയ്തു ആണ് അവർ ഓഫ് ഏറ്റവും മുതൽ പ്രധാന",
    ),
    "mn": LanguageFacts(
        2,
        11,
        0.781,
        "нь онд оны юм улсын байна сарын болон байсан энэ бөгөөд их монгол ба олон улс гэж хүн нэг байдаг",
    ),
    "mr": LanguageFacts(
        2,
        35,
        0.798,
        "आहे आणि हे व या एक ते हा आहेत स असते होते ही येथे मध्ये केले असतो महाराष्ट्र हवामान इ गाव "
        "राज्यातील जाते केली जिल्ह्यातील म्हणून पर्यंत",
    ),
    "ms": LanguageFacts(
        3,
        11,
        0.808,
        "dan di yang pada dalam dengan untuk ini",
    ),
    "my": LanguageFacts(
        2,
        21,
        0.75,
        "သည် များ ကို တွင် ဖြစ် သော ခဲ့ နှင့် ရှိ တို့ မှာ ဦး က မ မှ",
    ),
    "ne": LanguageFacts(
        3,
        37,
        0.824,
        "र छ थियो हो एक पनि मा थिए यो",
    ),
    "nl": LanguageFacts(
        3,
        17,
        0.828,
        "de van in het een en is op voor met door zijn werd hij uit",
    ),
    "no": LanguageFacts(
        3,
        12,
        0.783,
        "i og av som en er til på for ble med den det var han de å fra",
    ),
    "pa": LanguageFacts(
        2,
        19,
        0.83,
        "ਵਿੱਚ ਦੇ ਹੈ ਅਤੇ ਦੀ ਨੂੰ ਦਾ ਸੀ ਇੱਕ ਤੋਂ ਨੇ ਹਨ ਤੇ ਲਈ ਨਾਲ",
    ),
    "pl": LanguageFacts(
        3,
        12,
        0.726,
        "w i na z do się roku od a jest przez po jako oraz o został był nie",
    ),
    "pt": LanguageFacts(
        3,
        13,
        0.814,
        "de a e o em do da que um no uma com para na é foi",
    ),
    "ro": LanguageFacts(
        1,
        14,
        0.779,
        "de în a și din la o cu este un pe fost care al",
    ),
    "ru": LanguageFacts(
        3,
        11,
        0.713,
        "в и на с года по году из был к не от что за для его как а он также до после",
    ),
    "si": LanguageFacts(
        2,
        58,
        0.833,
        "සහ අතර හා වන ලෙස මෙම වූ විය ඇති විසින් කරන සඳහා ද වේ ඇත දී එය හෝ කර ඔහු කළ කිරීම ශ්‍රී යන නම් බව",
    ),
    "sk": LanguageFacts(
        2,
        11,
        0.752,
        "v a na sa je z roku s",
    ),
    "sl": LanguageFacts(
        2,
        12,
        0.781,
        "je v in na so se ki za leta z",
    ),
    "sq": LanguageFacts(
        1,
        14,
        0.788,
        "të e në dhe i një me nga për është që më u si",
    ),
    "sr": LanguageFacts(
        3,
        10,
        0.8,
        "у је и на се од су године да за из са насеље",
    ),
    "sv": LanguageFacts(
        3,
        12,
        0.841,
        "i och är av en som den med på till att för",
    ),
    "sw": LanguageFacts(
        3,
        9,
        0.802,
        "ya na wa katika kwa ni la za mwaka",
    ),
    "ta": LanguageFacts(
        4,
        37,
        0.779,
        "மற்றும் ஒரு இந்த ஆம் இது என்ற இவர் உள்ள ஆகும் ஆண்டு அல்லது என்பது முதல் உள்ளது என்று இந்திய "
        "மக்கள் ஊராட்சி இல் இருந்து மேலும் பல",
    ),
    "te": LanguageFacts(
        4,
        68,
        0.739,
        "నుండి కి ఉన్నాయి మీ గ్రామం ఉంది దూరంలో ఈ కేంద్రం",
    ),
    "th": LanguageFacts(
        2,
        10,
        0.9,
        "ใน ที่ และ ของ เป็น มี การ ได้",
    ),
    "tl": LanguageFacts(
        3,
        12,
        0.821,
        "ng sa ang na mga ay at isang noong",
    ),
    "tr": LanguageFacts(
        3,
        21,
        0.773,
        "ve bir olarak bu ile için olan da de tarafından yılında sonra en daha ilk the",
    ),
    "uk": LanguageFacts(
        3,
        11,
        0.694,
        "у в на і з та до року за що",
    ),
    "ur": LanguageFacts(
        2,
        31,
        0.839,
        "کے میں کی اور ہے سے کا نے اس پر کو ایک",
    ),
    "uz": LanguageFacts(
        3,
        13,
        0.691,
        "va bilan u uchun joylashgan bir bu boʻlgan ham uning aholi birinchi edi eng tomonidan boʻlib "
        "nafar qiladi km2 yoki sifatida",
    ),
    "vi": LanguageFacts(
        3,
        11,
        0.803,
        "là và của một được trong năm các có loài này đã người",
    ),
    "zh": LanguageFacts(
        1,
        5,
        0.735,
        "的 年 在 月 是 和 日 了 於 為 有 被 人 中 为 他 與 後 也 而 由",
    ),
}
"""By ISO 639-1 code, as lid.176 names languages."""
