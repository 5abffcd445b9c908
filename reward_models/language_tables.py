"""What languages look like: which script they are written in, and their commonest words.

Words are function words of running text, in lower case. Those that several languages share count for less.
"""

from __future__ import annotations

# script -> a regular expression's character class
SCRIPTS = {
    "latin": "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ\u0300-\u036f",
    "greek": "Ͱ-Ͽἀ-῿",
    "cyrillic": "Ѐ-ԯ",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u065f\u066e-\u06ef\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "devanagari": "\u0900-\u0963\u0970-\u097f",
    "bengali": "\u0980-\u09e3\u09f0-\u09ff",
    "gurmukhi": "\u0a00-\u0a65\u0a70-\u0a7f",
    "gujarati": "\u0a80-\u0ae5\u0af0-\u0aff",
    "tamil": "\u0b80-\u0be5\u0bf0-\u0bff",
    "telugu": "\u0c00-\u0c65\u0c70-\u0c7f",
    "kannada": "\u0c80-\u0ce5\u0cf0-\u0cff",
    "malayalam": "\u0d00-\u0d65\u0d70-\u0d7f",
    "thai": "\u0e00-\u0e4f\u0e5a-\u0e7f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "kana": "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
}
SYLLABIC = {"han": 3, "kana": 2, "hangul": 2}  # letters of an alphabet that one sign stands for, about

# language -> its script; Japanese is kana with han between
LANGUAGES = dict(
    [(code, "latin") for code in "en es pt fr de it nl pl vi sw fi sv da cs ro hu tr id".split()]
    + [(code, "cyrillic") for code in "ru uk bg".split()]
    + [(code, "arabic") for code in "ar fa ur".split()]
    + [(code, "devanagari") for code in "hi mr ne".split()]
    + [("el", "greek"), ("he", "hebrew"), ("bn", "bengali"), ("pa", "gurmukhi"), ("gu", "gujarati"), ("ta", "tamil")]
    + [("te", "telugu"), ("kn", "kannada"), ("ml", "malayalam"), ("th", "thai"), ("ko", "hangul"), ("ja", "kana")]
    + [("zh", "han")]
)

# Only for languages that share their script with another.
WORDS = {
    "en": "the of and to in is that it was for on are as with his they be at this have from or had by not but what "
    "all were we when your can said there use an each which she do how their if will up other about out many then "
    "them these so some her would make like him into has more its our who would could should my you i he been am "
    "because than also after very just over any only most where while yes good think believe how why",
    "es": "el la los las de del que y en un una es se no por con para su al lo como más pero sus le ya o este sí "
    "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni "
    "contra otros ese eso había ante ellos esto mí antes algunos qué unos yo otro otras otra él tanto esa estos mucho "
    "es son está están ser fue nuestra tiene puede",
    "pt": "o a os as de do da dos das que e em no na nos nas um uma é para com não por mais se como mas ao ele ela "
    "seu sua ou quando muito já eu também só pelo pela até isso entre depois sem mesmo aos seus quem me esse eles você "
    "essa num nem suas meu minha numa são está foi ser tem há uns às pode sobre este esta todos nossa",
    "fr": "le la les de des du et est un une que qui dans en il elle ne pas pour sur au aux ce cette ces avec plus se "
    "son sa ses par je vous nous on mais ou où leur leurs sont été être avoir fait comme tout tous si même aussi bien "
    "entre sans très y c'est d'un d'une qu'il n'est l'on peut quand après avant ils elles donc mon notre votre dont",
    "de": "der die das den dem des und ist in zu von mit sich auf für nicht ein eine einen einem einer eines es im an "
    "als auch aus bei nach wie war sie er wir ich ihr dass aber sind oder wird werden haben hat noch nur so um am über "
    "zum zur wenn können kann durch man vor mehr sehr ihre seine mein unsere diese dieser dieses bis doch schon hier",
    "it": "il lo la i gli le di del della dei delle dello degli e è un una uno che in nel nella nei nelle per con su "
    "sul sulla da dal dalla al alla ai alle non si come più ma se o anche sono ha hanno questo questa questi essere "
    "era molto mio suo sua loro ci tutto tutti quando perché dove chi cosa ancora dopo può nostra nostro l'uomo",
    "nl": "de het een van en in is dat op te zijn voor met die niet aan er om ook als dan maar bij of uit nog naar "
    "heeft hij ze wij ik je door over wordt worden deze dit werd kan meer al hebben was geen wel veel moet tot onder "
    "na haar hun ons onze mijn zo wat wie waar wanneer omdat zou kunnen tegen",
    "pl": "i w na z do się nie to jest że o jak a po ale za od przez dla czy jego jej ich tak być są był była było co "
    "który która które już tylko może przed przy tego tym ten ta te oraz ma bardzo także lub ze we gdy jeśli kiedy "
    "gdzie ponieważ można jako między nad pod bez mnie mój nasz wszystko",
    "vi": "và của là có được cho không trong một người với các những này đã khi để từ như về cũng ra thì đến tôi bạn "
    "nó họ chúng ta vào nhưng nhiều sẽ lại rất ở trên năm phải làm nếu sau đó vì hay hoặc mà thể việc đang đi nào "
    "theo cùng bởi mình con nhất",
    "sw": "na ya wa kwa ni katika za la kuwa cha hii hiyo kama yake wake lakini au hiyo ambayo ambao vya pia sana watu "
    "mtu hayo huo huu yao wao si hata baada kabla kila yangu wangu bila hivyo kwamba alikuwa ilikuwa mimi wewe yeye "
    "sisi nyinyi ili zaidi moja wakati hapa kwenye",
    "fi": "ja on ei se että oli hän joka ovat mutta kun myös tai niin kuin olla sen hänen jos voi mitä tämä ole vain nyt "
    "sitä jo ne he minä sinä me te mukaan sekä jotka kanssa sekä vuonna ennen jälkeen koska siitä tämän niitä nämä "
    "enemmän kaikki hyvin paljon missä miksi olen olet ollut",
    "sv": "och i att det som en på är av för med den till inte om har de jag ett han var men sig från vi så kan när år "
    "säger hon under också efter eller nu sin där vid mot ska skulle kommer ut får finns vara hade alla andra mycket än "
    "här då sedan över bara in blir upp även vad mellan mig dig mycket eftersom",
    "da": "og i at det er en til af på for med den de ikke som der har et jeg han var men sig fra vi så kan når hun "
    "under også efter eller nu sin hvor ved mod skal ville kommer ud får være havde alle andre meget end her da over "
    "kun ind bliver op hvad mellem mig dig meget fordi blev af noget",
    "cs": "a je v na se že s z do to o i k ve pro jako za by ale jsou si po tak byl bylo byla jeho jejich které který "
    "která co od jen nebo už když není také být až při ze podle této tím může mezi před bez než však kde protože "
    "velmi jsem jsme má mají tento",
    "ro": "și în de la a cu pe nu este că din o un care să mai se pentru sunt al ale ca dar sau fi a fost au am ai el "
    "ea ei lor lui această acest acestea după când cum foarte până între prin fără despre dacă decât toate tot unei "
    "unui are avea poate noi eu",
    "hu": "a az és hogy nem is egy ez meg van volt de csak már még ha mint mert el vagy azt ezt ki be fel le kell lehet "
    "minden nagyon itt ott én te ő mi ti ők nek után előtt között alatt szerint amely aki ami pedig sem akkor így úgy "
    "több lesz voltak",
    "tr": "ve bir bu da de için ile o çok ne gibi daha olarak var en kadar ama sonra değil ki mi her olan ben sen biz "
    "siz onlar olduğu veya ya ise nasıl neden çünkü diye önce bana ona şey zaman iyi göre üzerinde arasında olarak yok "
    "hem kendi tüm bütün",
    "id": "dan yang di dengan ini itu untuk dari dalam tidak akan pada juga saya adalah ke karena ada bisa mereka kita "
    "kami anda dia oleh atau sebagai lebih telah sudah dapat seperti hanya banyak orang ketika bahwa setelah sebelum "
    "antara harus satu serta tersebut para sangat jika agar namun",
    "ru": "и в не на я что он с по это как но она к у из за от так о же для мы вы они был была было были ты все его её "
    "ее их бы только когда или если уже до при может этого мне меня также который которые которая чтобы есть нет очень "
    "более потому где между после можно да мой моя вам вас нам нас ли",
    "uk": "і в не на я що він з по це як але вона до у із за від так про же для ми ви вони був була було були ти все "
    "його її їх б би тільки коли або якщо вже при може цього мені мене також який які яка щоб є ні дуже більше тому "
    "де між після можна та й ці цей",
    "bg": "и в не на аз че той с по това как но тя към у из за от така о же ние вие те беше бяха ти всичко го я ги "
    "само когато или ако вече до при може този тази тези ме също който които която за да има няма много повече защото "
    "къде между след се са е ще си със във бъде",
    "ar": "في من على أن إلى هذا هذه التي الذي لا ما مع كان كانت عن هو هي ذلك كل بين أو ثم قد بعد قبل عند لم إن كما "
    "أنا نحن هم أنت لكن حتى حيث منذ غير يمكن يكون تكون هناك أي إذا لأن به فيه له لها",
    "fa": "و در به از که این را با است آن برای یک بود تا می های هم شده شد بر ما من او آنها کرد خود اما یا هر اگر "
    "باید کند نیز شما هستند چه پس ولی بین همه بسیار دارد بیشتر کنید بعد قبل نیست",
    "ur": "کے میں کی ہے اور سے کا کو ہیں نے پر کہ یہ اس وہ ایک بھی تھا نہیں تو لیے جو ہو کر تھے تھی ہم آپ کیا یا گیا "
    "ان ہی کوئی اپنے ساتھ بہت جب اگر لیکن بعد پہلے مجھے میرے ہوتا ہوتی",
    "hi": "के में की है और से का को हैं ने पर कि यह इस वह एक भी था नहीं तो लिए जो कर थे थी हम आप क्या या गया उन ही "
    "कोई अपने साथ बहुत जब अगर लेकिन बाद पहले मुझे मेरे होता होती इसके करने रहा",
    "mr": "आहे आणि या मध्ये तो ती ते हे हा ही होते होता होती नाही आहेत एक च्या ला ने साठी पण किंवा काही तर मी आम्ही "
    "तुम्ही त्या त्यांनी त्याच्या असे असा जे जो करून केले केला झाला झाली म्हणून खूप आपण आपल्या सर्व करणे",
    "ne": "छ र को मा लाई हो पनि छन् थियो यो त्यो गर्न भएको गरेको गर्ने एक तर वा म हामी तपाईं उनी उनले लागि बाट सँग "
    "हुन्छ हुन् थिए भन्ने धेरै यस त्यस नेपाल अनि गरी भने जो के छैन सबै राम्रो मेरो हाम्रो",
}

# Letters that few languages of a script have.
LETTERS = {
    "es": "ñáíóú",
    "pt": "ãõçáê",
    "it": "àèìòù",
    "fr": "œùëïêèâç",
    "de": "ßäöü",
    "pl": "łąęśźżćńó",
    "vi": "ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "sv": "äö",
    "fi": "äö",
    "da": "æøå",
    "cs": "ěřůčšžýáí",
    "ro": "țșţşăâî",
    "hu": "őűáéöü",
    "tr": "ğışçü",
    "ru": "ыэё",
    "uk": "іїєґ",
    "fa": "پچژگکی",
    "ur": "ٹڈڑںےہھکی",
    "ar": "ةىأإيك",
    "mr": "ळ",
}
