"""Numbers, prices, times, telephone numbers and links, as people write them.

Every function takes the `Place` of a message, which decides currency and telephone
numbers. These are from ranges reserved for fiction (Ofcom's for the United Kingdom,
555-01xx for North America), links from names reserved by RFC 2606.
"""

# Currency: how it is written, what a pound is in it, and to what it is rounded
CURRENCIES = {
    "£{}": (1, 0.5),
    "${}": (1.3, 0.5),
    "€{}": (1.2, 0.5),
    "{} euro": (1.2, 1),
    "{} quid": (1, 1),
    "{} dollars": (1.3, 1),
    "A${}": (1.9, 0.5),
    "R{}": (23, 5),
    "Rs {}": (105, 10),
    "₹{}": (105, 10),
    "N{}": (1900, 100),
    "₦{}": (1900, 100),
    "KSh {}": (165, 10),
    "{} pesos": (72, 5),
    "RM{}": (5.9, 1),
    "{} dirhams": (4.8, 1),
}
# fmt: off
WEEKDAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August",
    "September", "October", "November", "December",
)
# Parts of links
FIRST = ("my", "go", "book", "info", "track", "pay", "help", "news", "desk")
SECOND = ("parcels", "bookings", "accounts", "online", "bills", "club", "city")
ALONE = (
    "services", "clinic", "rewards", "notices", "members", "centre", "direct", "local",
    "signup", "shop", "support", "delivery", "parcels", "bookings", "post", "home",
)
PARTS = ("app", "form", "portal", "my", "go", "book", "track", "pay", "help", "news")
PATHS = ("track", "t", "r", "my", "id", "go", "p", "view", "info", "m", "b", "s", "pay")
# fmt: on


class Place:
    """Where a message is written: its currency, and what it has named so far."""

    def __init__(self, rng):
        self.rng = rng
        self.currency = rng.choice(list(CURRENCIES))
        self.british = self.currency[0] in "£{" or rng.random() < 0.4
        self.twelve_hours = rng.random() < 0.4


def _money(low, high):
    def amount(place):
        rate, step = CURRENCIES[place.currency]
        value = place.rng.uniform(low, high) * rate
        # People round: the larger the sum, the rounder
        unit = max(step, 10 ** (len(str(int(value))) - 2))
        value = max(unit, round(value / unit) * unit)
        if low < 10 and step == 0.5 and place.rng.random() < 0.5:
            number = f"{value - 0.01 * place.rng.randint(1, 30):.2f}"
        elif value == int(value):
            number = f"{int(value):,}"
        else:
            number = f"{value:.2f}"
        if place.rng.random() < 0.3 and value < 10**6:
            number = number.replace(",", "")
        return place.currency.format(number)

    return amount


def _time(place):
    """As people type it: 7, half 7, 7.15, 7:30pm, 19:30."""
    rng = place.rng
    hour, minute = rng.randint(1, 12), rng.choice(["00", "15", "30", "45", "10", "20"])
    half = "am" if hour in (8, 9, 10, 11) else "pm"
    forms = [f"{hour}", f"{hour}", f"half {hour}", f"{hour}.{minute}", f"{hour} ish"]
    forms += [f"{hour}:{minute}", f"{hour}{half}", f"{hour} {half}"]
    forms += [f"{hour}:{minute}{half}", f"{hour % 12 + 12}:{minute}"]
    return rng.choice(forms)


def _clock(place):
    """As machines print it."""
    rng = place.rng
    hour = rng.randint(8, 18)
    minute = rng.choice(["00", "15", "30", "45", "05", "40"])
    if place.twelve_hours:
        half = "am" if hour < 12 else "pm"
        return f"{(hour - 1) % 12 + 1}:{minute} {half}"
    return f"{hour:02}:{minute}"


def _span(place):
    """From one clock time to a later one."""
    start = place.rng.randint(7, 15)
    end = start + place.rng.choice([1, 2, 4])
    if place.twelve_hours:
        hours = [f"{(h - 1) % 12 + 1} {'am' if h < 12 else 'pm'}" for h in (start, end)]
    else:
        hours = [f"{h:02}:{place.rng.choice(['00', '30'])}" for h in (start, end)]
    return f"{hours[0]} and {hours[1]}"


def _date(place):
    rng = place.rng
    day, month, weekday = rng.randint(1, 28), rng.choice(MONTHS), rng.choice(WEEKDAYS)
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    forms = [f"{day} {month}", f"{day} {month[:3]}", f"{weekday[:3]} {day} {month[:3]}"]
    forms += [f"{month} {day}", f"the {day}{ending}", f"{weekday} {day}{ending}"]
    return rng.choice(forms)


def _phone(place):
    rng, tail = place.rng, place.rng.randint(100, 999)
    british = [f"07700 900{tail}", f"07700900{tail}", f"020 7946 0{tail}"]
    british += [f"01632 960{tail}", f"0161 496 0{tail}", f"0808 157 0{tail}"]
    american = [f"555-01{tail % 100:02}", f"555 01{tail % 100:02}"]
    american += [f"(555) 555-01{tail % 100:02}"]
    return rng.choice(british if place.british else american)


def _reference(place):
    rng = place.rng
    letters = "".join(rng.choices("ABCDEFGHJKLMNPRSTVWXYZ", k=2))
    digits = rng.randint(1000, 99999)
    return rng.choice([f"{letters}{digits}", f"{letters}-{digits}", f"{digits}"])


def _code(place):
    rng = place.rng
    digits = rng.choice([4, 5, 6, 6, 6])
    code = f"{rng.randrange(10**digits):0{digits}}"
    return code if digits < 6 or rng.random() < 0.7 else f"{code[:3]} {code[3:]}"


def _link(place):
    """A link of either class; honest senders have odd addresses too."""
    rng = place.rng
    name = rng.choice([f"{rng.choice(FIRST)}-{rng.choice(SECOND)}", rng.choice(ALONE)])
    part, ending = rng.choice(PARTS), rng.choice(["com", "org", "net"])
    hosts = [f"{name}.{rng.choice(['test', 'invalid'])}", "example.com"]
    hosts += [f"{name}.example"] * 3 + [f"{part}.example.{ending}"]
    link = rng.choice(["", "", "", "https://", "http://", "www."]) + rng.choice(hosts)
    if rng.random() < 0.25:
        return link
    letters = rng.choices("abcdefghkmnpqrstuvwxyz23456789", k=rng.randint(3, 5))
    return f"{link}/{rng.choice(PATHS)}/{''.join(letters)}"


NUMBERS = {
    "price": _money(3, 60),
    "small": _money(1, 4),
    "sum": _money(70, 900),
    "big": _money(1500, 90000),
    "time": _time,
    "clock": _clock,
    "span": _span,
    "date": _date,
    "day": lambda place: place.rng.choice(WEEKDAYS),
    "month": lambda place: place.rng.choice(MONTHS),
    "phone": _phone,
    "ref": _reference,
    "code": _code,
    "link": _link,
    "tail": lambda place: f"{place.rng.randint(1000, 9999)}",
    "n": lambda place: str(place.rng.randint(2, 9)),
    "nn": lambda place: str(place.rng.randint(11, 48)),
    "age": lambda place: str(place.rng.randint(27, 58)),
    "tens": lambda place: str(5 * place.rng.randint(2, 11)),
}
