"""Readable names for the census's topics, and the few labels and units that a sentence needs otherwise."""

# A topic without a title is left out: housing's ageByType, mostly missing and with labels twice as long.
# Small topics share a dataset, so that a record has neighbours to hold. Labels are unique within a dataset.
TITLES = {
    "people": {
        "population": "Population",
        "sex": "Population",
        "age": "Age structure",
        "maritalStatus": "Marital status",
        "fertility": "Fertility and disability",
        "disability": "Fertility and disability",
        "schooling": "Schooling and illiteracy",
        "illiteracy": "Schooling and illiteracy",
        "languagesReadAndWritten": "Languages read and written",
        "languageCombinations": "Languages read and written",
        "education": "Level of education",
        "localLanguages": "Local languages",
        "labour": "Labour force",
        "employmentStatus": "Employment status",
        "commute": "Travel to work",
        "workplace": "Place of work",
        "study": "Place of study",
        "studyCommute": "Travel to school",
        "profession": "Occupations",
        "workSector": "Sectors of work",
        "diploma": "Diplomas",
        "vocationalDiploma": "Vocational diplomas",
    },
    "households": {
        "households": "Households",
        "dwellingType": "Type of dwelling",
        "occupancy": "Home ownership",
        "dwellingAge": "Age of dwelling",
        "amenities": "Home amenities",
        "wastewater": "Wastewater",
        "householdWaste": "Household waste",
        "cookingFuel": "Cooking fuel",
        "equipment": "Home equipment",
    },
    "housing": {
        "dwellings": "Urban dwellings",
        "occupancy": "Urban dwellings in use",
        "type": "Urban dwellings by type",
        "age": "Urban dwellings by age",
        "walls": "Walls of urban dwellings",
        "roofs": "Roofs of urban dwellings",
        "networks": "Networks of urban dwellings",
    },
    "economy": {
        "establishments": "Establishments",
        "sector": "Businesses by sector",
        "size": "Businesses by size",
        "founded": "Businesses by year founded",
    },
}

# A label stands between single quotes, so it holds none itself; what every neighbour shares is dropped.
LABELS = {
    "Doesn\u2019t travel to work": "No travel to work",
    "Master's, doctorate or equivalent": "Master, doctorate or equivalent",
    "Work that couldn't be classified": "Unclassified work",
    "School enrolment at 6 to 11, in 2023/24": "School enrolment at 6 to 11",
    "Labour force participation rate, aged 15 and over": "Labour force participation rate",
    "In the labour force, aged 15 and over": "In the labour force",
    "Outside the labour force, aged 15 and over": "Outside the labour force",
    "Employed, aged 15 and over": "Employed",
}

# A count stands alone: its label says what is counted.
UNITS = {"percent": "%", "years": " years", "km": " km"}
