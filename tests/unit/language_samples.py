"""Three sentences in each language that the toolkit knows: of science, of a family, of plans."""

SAMPLES = {
    "en": [
        "Photosynthesis is the process by which plants turn light into energy.",
        "My sister works in a hospital in the city and comes home late every evening.",
        "If it rains tomorrow, we will stay at home and read the books that we bought last week.",
    ],
    "es": [
        "La fotosíntesis es el proceso por el cual las plantas transforman la luz en energía.",
        "Mi hermana trabaja en un hospital de la ciudad y vuelve tarde a casa todas las noches.",
        "Si llueve mañana, nos quedaremos en casa y leeremos los libros que compramos la semana pasada.",
    ],
    "pt": [
        "A fotossíntese é o processo pelo qual as plantas transformam a luz em energia.",
        "A minha irmã trabalha num hospital da cidade e chega tarde a casa todas as noites.",
        "Se chover amanhã, vamos ficar em casa e ler os livros que comprámos na semana passada.",
    ],
    "fr": [
        "La photosynthèse est le processus par lequel les plantes transforment la lumière en énergie.",
        "Ma sœur travaille dans un hôpital de la ville et rentre tard à la maison tous les soirs.",
        "S'il pleut demain, nous resterons à la maison et lirons les livres que nous avons achetés.",
    ],
    "de": [
        "Die Photosynthese ist der Vorgang, durch den Pflanzen Licht in Energie umwandeln.",
        "Meine Schwester arbeitet in einem Krankenhaus in der Stadt und kommt jeden Abend spät nach Hause.",
        "Wenn es morgen regnet, bleiben wir zu Hause und lesen die Bücher, die wir gekauft haben.",
    ],
    "it": [
        "La fotosintesi è il processo con cui le piante trasformano la luce in energia.",
        "Mia sorella lavora in un ospedale della città e torna a casa tardi tutte le sere.",
        "Se domani piove, resteremo a casa e leggeremo i libri che abbiamo comprato la settimana scorsa.",
    ],
    "nl": [
        "Fotosynthese is het proces waarbij planten licht omzetten in energie.",
        "Mijn zus werkt in een ziekenhuis in de stad en komt elke avond laat thuis.",
        "Als het morgen regent, blijven we thuis en lezen we de boeken die we vorige week hebben gekocht.",
    ],
    "pl": [
        "Fotosynteza to proces, w którym rośliny zamieniają światło w energię.",
        "Moja siostra pracuje w szpitalu w mieście i co wieczór późno wraca do domu.",
        "Jeśli jutro będzie padać, zostaniemy w domu i poczytamy książki, które kupiliśmy.",
    ],
    "vi": [
        "Quang hợp là quá trình mà cây cối biến ánh sáng thành năng lượng.",
        "Chị tôi làm việc trong một bệnh viện ở thành phố và tối nào cũng về nhà muộn.",
        "Nếu ngày mai trời mưa, chúng tôi sẽ ở nhà và đọc những cuốn sách đã mua tuần trước.",
    ],
    "sw": [
        "Usanisinuru ni mchakato ambao mimea hutumia mwanga wa jua kutengeneza chakula.",
        "Dada yangu anafanya kazi katika hospitali ya mjini na hurudi nyumbani usiku kila siku.",
        "Kama mvua itanyesha kesho, tutakaa nyumbani na kusoma vitabu ambavyo tulinunua wiki iliyopita.",
    ],
    "fi": [
        "Fotosynteesi on prosessi, jossa kasvit muuttavat valon energiaksi ja sokeriksi.",
        "Siskoni on töissä sairaalassa kaupungissa ja tulee joka ilta myöhään kotiin.",
        "Jos huomenna sataa, jäämme kotiin ja luemme kirjoja, jotka ostimme viime viikolla.",
    ],
    "sv": [
        "Fotosyntes är den process där växter omvandlar ljus till energi.",
        "Min syster arbetar på ett sjukhus i staden och kommer hem sent varje kväll.",
        "Om det regnar i morgon stannar vi hemma och läser böckerna som vi köpte förra veckan.",
    ],
    "da": [
        "Fotosyntese er den proces, hvor planter omdanner lys til energi.",
        "Min søster arbejder på et hospital i byen og kommer sent hjem hver aften.",
        "Hvis det regner i morgen, bliver vi hjemme og læser de bøger, som vi købte i sidste uge.",
    ],
    "cs": [
        "Fotosyntéza je proces, při kterém rostliny mění světlo na energii.",
        "Moje sestra pracuje v nemocnici ve městě a každý večer se vrací domů pozdě.",
        "Pokud bude zítra pršet, zůstaneme doma a budeme číst knihy, které jsme koupili minulý týden.",
    ],
    "ro": [
        "Fotosinteza este procesul prin care plantele transformă lumina în energie.",
        "Sora mea lucrează într-un spital din oraș și se întoarce târziu acasă în fiecare seară.",
        "Dacă mâine plouă, vom sta acasă și vom citi cărțile pe care le-am cumpărat săptămâna trecută.",
    ],
    "hu": [
        "A fotoszintézis az a folyamat, amelynek során a növények a fényt energiává alakítják.",
        "A nővérem egy kórházban dolgozik a városban, és minden este későn ér haza.",
        "Ha holnap esik az eső, otthon maradunk, és elolvassuk a könyveket, amelyeket vettünk.",
    ],
    "tr": [
        "Fotosentez, bitkilerin ışığı enerjiye dönüştürdüğü bir süreçtir.",
        "Kız kardeşim şehirde bir hastanede çalışıyor ve her akşam eve geç geliyor.",
        "Yarın yağmur yağarsa evde kalacağız ve geçen hafta aldığımız kitapları okuyacağız, ama çok değil.",
    ],
    "id": [
        "Fotosintesis adalah proses yang digunakan tumbuhan untuk mengubah cahaya menjadi energi.",
        "Kakak saya bekerja di sebuah rumah sakit di kota dan pulang larut setiap malam.",
        "Jika besok hujan, kami akan tinggal di rumah dan membaca buku yang kami beli minggu lalu.",
    ],
    "ru": [
        "Фотосинтез — это процесс, с помощью которого растения превращают свет в энергию.",
        "Моя сестра работает в больнице в городе и каждый вечер поздно приходит домой.",
        "Если завтра будет дождь, мы останемся дома и будем читать книги, которые купили.",
    ],
    "uk": [
        "Фотосинтез — це процес, за допомогою якого рослини перетворюють світло на енергію.",
        "Моя сестра працює в лікарні в місті і щовечора пізно повертається додому.",
        "Якщо завтра буде дощ, ми залишимося вдома і читатимемо книжки, які купили.",
    ],
    "bg": [
        "Фотосинтезата е процес, чрез който растенията превръщат светлината в енергия.",
        "Сестра ми работи в болница в града и всяка вечер се прибира късно.",
        "Ако утре вали, ще останем вкъщи и ще четем книгите, които купихме миналата седмица.",
    ],
    "ar": [
        "التمثيل الضوئي هو العملية التي تحول بها النباتات الضوء إلى طاقة.",
        "تعمل أختي في مستشفى في المدينة وتعود إلى البيت متأخرة كل مساء.",
        "إذا أمطرت غدا فسوف نبقى في البيت ونقرأ الكتب التي اشتريناها في الأسبوع الماضي.",
    ],
    "fa": [
        "فتوسنتز فرایندی است که در آن گیاهان نور را به انرژی تبدیل می‌کنند.",
        "خواهرم در یک بیمارستان در شهر کار می‌کند و هر شب دیر به خانه می‌آید.",
        "اگر فردا باران بیاید، ما در خانه می‌مانیم و کتاب‌هایی را که خریدیم می‌خوانیم.",
    ],
    "ur": [
        "ضیائی تالیف وہ عمل ہے جس میں پودے روشنی کو توانائی میں بدلتے ہیں۔",
        "میری بہن شہر کے ایک ہسپتال میں کام کرتی ہے اور ہر شام دیر سے گھر آتی ہے۔",
        "اگر کل بارش ہوئی تو ہم گھر پر رہیں گے اور وہ کتابیں پڑھیں گے جو ہم نے خریدی تھیں۔",
    ],
    "hi": [
        "प्रकाश संश्लेषण वह प्रक्रिया है जिसमें पौधे प्रकाश को ऊर्जा में बदलते हैं।",
        "मेरी बहन शहर के एक अस्पताल में काम करती है और हर शाम देर से घर आती है।",
        "अगर कल बारिश हुई तो हम घर पर रहेंगे और वे किताबें पढ़ेंगे जो हमने खरीदी थीं।",
    ],
    "mr": [
        "प्रकाशसंश्लेषण ही अशी प्रक्रिया आहे ज्यामध्ये वनस्पती प्रकाशाचे ऊर्जेत रूपांतर करतात.",
        "माझी बहीण शहरातील एका रुग्णालयात काम करते आणि रोज संध्याकाळी उशिरा घरी येते.",
        "उद्या पाऊस पडला तर आम्ही घरी राहू आणि मागच्या आठवड्यात घेतलेली पुस्तके वाचू.",
    ],
    "ne": [
        "प्रकाश संश्लेषण बिरुवाले प्रकाशलाई ऊर्जामा बदल्ने प्रक्रिया हो।",
        "मेरी बहिनी शहरको एउटा अस्पतालमा काम गर्छिन् र हरेक साँझ ढिलो घर आउँछिन्।",
        "भोलि पानी पर्यो भने हामी घरमा बस्नेछौं र गत हप्ता किनेका किताबहरू पढ्नेछौं।",
    ],
    "el": [
        "Η φωτοσύνθεση είναι η διαδικασία με την οποία τα φυτά μετατρέπουν το φως σε ενέργεια.",
        "Η αδελφή μου δουλεύει σε ένα νοσοκομείο στην πόλη και γυρίζει αργά στο σπίτι.",
        "Αν βρέξει αύριο, θα μείνουμε στο σπίτι και θα διαβάσουμε τα βιβλία που αγοράσαμε.",
    ],
    "he": [
        "פוטוסינתזה היא התהליך שבו צמחים הופכים אור לאנרגיה.",
        "אחותי עובדת בבית חולים בעיר וחוזרת הביתה מאוחר בכל ערב.",
        "אם ירד גשם מחר, נישאר בבית ונקרא את הספרים שקנינו בשבוע שעבר.",
    ],
    "bn": [
        "সালোকসংশ্লেষণ হলো সেই প্রক্রিয়া যার মাধ্যমে উদ্ভিদ আলোকে শক্তিতে রূপান্তর করে।",
        "আমার বোন শহরের একটি হাসপাতালে কাজ করে এবং প্রতি সন্ধ্যায় দেরিতে বাড়ি ফেরে।",
        "কাল বৃষ্টি হলে আমরা বাড়িতে থাকব এবং গত সপ্তাহে কেনা বইগুলো পড়ব।",
    ],
    "pa": [
        "ਪ੍ਰਕਾਸ਼ ਸੰਸਲੇਸ਼ਣ ਉਹ ਪ੍ਰਕਿਰਿਆ ਹੈ ਜਿਸ ਵਿੱਚ ਪੌਦੇ ਰੌਸ਼ਨੀ ਨੂੰ ਊਰਜਾ ਵਿੱਚ ਬਦਲਦੇ ਹਨ।",
        "ਮੇਰੀ ਭੈਣ ਸ਼ਹਿਰ ਦੇ ਇੱਕ ਹਸਪਤਾਲ ਵਿੱਚ ਕੰਮ ਕਰਦੀ ਹੈ ਅਤੇ ਹਰ ਸ਼ਾਮ ਦੇਰ ਨਾਲ ਘਰ ਆਉਂਦੀ ਹੈ।",
        "ਜੇ ਕੱਲ੍ਹ ਮੀਂਹ ਪਿਆ ਤਾਂ ਅਸੀਂ ਘਰ ਰਹਾਂਗੇ ਅਤੇ ਕਿਤਾਬਾਂ ਪੜ੍ਹਾਂਗੇ।",
    ],
    "gu": [
        "પ્રકાશસંશ્લેષણ એ પ્રક્રિયા છે જેમાં છોડ પ્રકાશને ઊર્જામાં ફેરવે છે.",
        "મારી બહેન શહેરની એક હોસ્પિટલમાં કામ કરે છે અને દરરોજ સાંજે મોડી ઘરે આવે છે.",
        "જો કાલે વરસાદ પડશે તો અમે ઘરે રહીશું અને પુસ્તકો વાંચીશું.",
    ],
    "ta": [
        "ஒளிச்சேர்க்கை என்பது தாவரங்கள் ஒளியை ஆற்றலாக மாற்றும் செயல்முறை.",
        "என் சகோதரி நகரத்தில் உள்ள ஒரு மருத்துவமனையில் வேலை செய்கிறாள்.",
        "நாளை மழை பெய்தால் நாங்கள் வீட்டில் இருந்து புத்தகங்களைப் படிப்போம்.",
    ],
    "te": [
        "కిరణజన్య సంయోగక్రియ అనేది మొక్కలు కాంతిని శక్తిగా మార్చే ప్రక్రియ.",
        "మా అక్క నగరంలోని ఒక ఆసుపత్రిలో పని చేస్తుంది.",
        "రేపు వర్షం పడితే మేము ఇంట్లో ఉండి పుస్తకాలు చదువుతాము.",
    ],
    "kn": [
        "ದ್ಯುತಿಸಂಶ್ಲೇಷಣೆಯು ಸಸ್ಯಗಳು ಬೆಳಕನ್ನು ಶಕ್ತಿಯಾಗಿ ಪರಿವರ್ತಿಸುವ ಪ್ರಕ್ರಿಯೆ.",
        "ನನ್ನ ಅಕ್ಕ ನಗರದ ಒಂದು ಆಸ್ಪತ್ರೆಯಲ್ಲಿ ಕೆಲಸ ಮಾಡುತ್ತಾಳೆ.",
        "ನಾಳೆ ಮಳೆ ಬಂದರೆ ನಾವು ಮನೆಯಲ್ಲಿ ಇದ್ದು ಪುಸ್ತಕಗಳನ್ನು ಓದುತ್ತೇವೆ.",
    ],
    "ml": [
        "സസ്യങ്ങൾ പ്രകാശത്തെ ഊർജ്ജമാക്കി മാറ്റുന്ന പ്രക്രിയയാണ് പ്രകാശസംശ്ലേഷണം.",
        "എന്റെ സഹോദരി നഗരത്തിലെ ഒരു ആശുപത്രിയിൽ ജോലി ചെയ്യുന്നു.",
        "നാളെ മഴ പെയ്താൽ ഞങ്ങൾ വീട്ടിൽ ഇരുന്ന് പുസ്തകങ്ങൾ വായിക്കും.",
    ],
    "th": [
        "การสังเคราะห์ด้วยแสงคือกระบวนการที่พืชเปลี่ยนแสงเป็นพลังงาน",
        "พี่สาวของฉันทำงานที่โรงพยาบาลในเมืองและกลับบ้านดึกทุกคืน",
        "ถ้าพรุ่งนี้ฝนตก เราจะอยู่บ้านและอ่านหนังสือที่ซื้อเมื่อสัปดาห์ที่แล้ว",
    ],
    "ko": [
        "광합성은 식물이 빛을 에너지로 바꾸는 과정이다.",
        "우리 언니는 시내의 병원에서 일하고 매일 저녁 늦게 집에 온다.",
        "내일 비가 오면 우리는 집에 머물면서 지난주에 산 책을 읽을 것이다.",
    ],
    "ja": [
        "光合成とは、植物が光をエネルギーに変える過程である。",
        "姉は町の病院で働いていて、毎晩遅く家に帰ってくる。",
        "明日雨が降ったら、私たちは家にいて、先週買った本を読むつもりだ。",
    ],
    "zh": [
        "光合作用是植物将光转化为能量的过程。",
        "我姐姐在城里的一家医院工作，每天晚上很晚才回家。",
        "如果明天下雨，我们就待在家里看上周买的书。",
    ],
}
