"""Countries and their capitals, written down from general knowledge, in plain ASCII.

Countries with a disputed or a double seat of government carry the usual textbook answer. The list
is training data for a toy model, not a reference.
"""

_TABLE = """
Afghanistan: Kabul; Albania: Tirana; Algeria: Algiers; Andorra: Andorra la Vella; Angola: Luanda
Argentina: Buenos Aires; Armenia: Yerevan; Australia: Canberra; Austria: Vienna; Azerbaijan: Baku
the Bahamas: Nassau; Bahrain: Manama; Bangladesh: Dhaka; Barbados: Bridgetown; Belarus: Minsk
Belgium: Brussels; Belize: Belmopan; Benin: Porto-Novo; Bhutan: Thimphu; Bolivia: Sucre
Bosnia and Herzegovina: Sarajevo; Botswana: Gaborone; Brazil: Brasilia; Brunei: Bandar Seri Begawan
Bulgaria: Sofia; Burkina Faso: Ouagadougou; Cambodia: Phnom Penh; Cameroon: Yaounde; Canada: Ottawa
Cape Verde: Praia; the Central African Republic: Bangui; Chad: N'Djamena; Chile: Santiago
China: Beijing; Colombia: Bogota; Comoros: Moroni; Costa Rica: San Jose; Croatia: Zagreb
Cuba: Havana; Cyprus: Nicosia; the Czech Republic: Prague; Denmark: Copenhagen
the Dominican Republic: Santo Domingo; Ecuador: Quito; Egypt: Cairo; El Salvador: San Salvador
Equatorial Guinea: Malabo; Eritrea: Asmara; Estonia: Tallinn; Ethiopia: Addis Ababa; Fiji: Suva
Finland: Helsinki; France: Paris; Gabon: Libreville; Georgia: Tbilisi; Germany: Berlin
Ghana: Accra; Greece: Athens; Grenada: Saint George's; Guatemala: Guatemala City; Guinea: Conakry
Guyana: Georgetown; Haiti: Port-au-Prince; Honduras: Tegucigalpa; Hungary: Budapest
Iceland: Reykjavik; India: New Delhi; Indonesia: Jakarta; Iran: Tehran; Iraq: Baghdad
Ireland: Dublin; Israel: Jerusalem; Italy: Rome; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman
Kazakhstan: Astana; Kenya: Nairobi; Kosovo: Pristina; Kuwait: Kuwait City; Kyrgyzstan: Bishkek
Laos: Vientiane; Latvia: Riga; Lebanon: Beirut; Lesotho: Maseru; Liberia: Monrovia; Libya: Tripoli
Liechtenstein: Vaduz; Lithuania: Vilnius; Luxembourg: Luxembourg City; Madagascar: Antananarivo
Malawi: Lilongwe; Malaysia: Kuala Lumpur; the Maldives: Male; Mali: Bamako; Malta: Valletta
Mauritania: Nouakchott; Mauritius: Port Louis; Mexico: Mexico City; Moldova: Chisinau
Monaco: Monaco; Mongolia: Ulaanbaatar; Montenegro: Podgorica; Morocco: Rabat; Mozambique: Maputo
Myanmar: Naypyidaw; Namibia: Windhoek; Nepal: Kathmandu; the Netherlands: Amsterdam
New Zealand: Wellington; Nicaragua: Managua; Niger: Niamey; Nigeria: Abuja; North Korea: Pyongyang
North Macedonia: Skopje; Norway: Oslo; Oman: Muscat; Pakistan: Islamabad; Panama: Panama City
Papua New Guinea: Port Moresby; Paraguay: Asuncion; Peru: Lima; the Philippines: Manila
Poland: Warsaw; Portugal: Lisbon; Qatar: Doha; Romania: Bucharest; Russia: Moscow; Rwanda: Kigali
Samoa: Apia; Saudi Arabia: Riyadh; Senegal: Dakar; Serbia: Belgrade; Sierra Leone: Freetown
Singapore: Singapore; Slovakia: Bratislava; Slovenia: Ljubljana; Somalia: Mogadishu
South Africa: Pretoria; South Korea: Seoul; South Sudan: Juba; Spain: Madrid; Sri Lanka: Colombo
Sudan: Khartoum; Suriname: Paramaribo; Sweden: Stockholm; Switzerland: Bern; Syria: Damascus
Taiwan: Taipei; Tajikistan: Dushanbe; Tanzania: Dodoma; Thailand: Bangkok; Togo: Lome; Tonga: Nuku'alofa
Tunisia: Tunis; Turkey: Ankara; Turkmenistan: Ashgabat; Uganda: Kampala; Ukraine: Kyiv
the United Arab Emirates: Abu Dhabi; the United Kingdom: London; the United States: Washington
Uruguay: Montevideo; Uzbekistan: Tashkent; Vanuatu: Port Vila; Venezuela: Caracas; Vietnam: Hanoi
Yemen: Sanaa; Zambia: Lusaka; Zimbabwe: Harare
"""


def _parse(table: str) -> dict[str, str]:
    entries = (entry.split(":") for line in table.split("\n") for entry in line.split(";") if entry)
    return {country.strip(): capital.strip() for country, capital in entries}


CAPITALS: dict[str, str] = _parse(_TABLE)
"""Country to capital; the article, where English wants one, is part of the country's name."""
