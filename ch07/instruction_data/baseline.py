"""Answers copied from the most similar training entry: what a model has to beat.

Similar is the cosine of TF-IDF vectors of instruction and input (scikit-learn's words).
"""

import numpy as np


def nearest_answers(known, asked):
    """Return, for each entry asked, the output of the most similar known entry.

    An entry that is itself among the known ones is not its own neighbour. Of equally
    similar entries the first one counts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer()
    known_vectors = vectorizer.fit_transform(map(question, known))
    similarities = vectorizer.transform(map(question, asked)) @ known_vectors.T
    # Rounded: the last digits differ between machines, and with them who is nearest
    similarities = np.round(similarities.toarray(), 6)
    same = {id(entry): column for column, entry in enumerate(known)}
    for row, entry in enumerate(asked):
        if id(entry) in same:
            similarities[row, same[id(entry)]] = -1
    return [known[column]["output"] for column in similarities.argmax(axis=1)]


def question(entry):
    """Return instruction and input as one text."""
    return f"{entry['instruction']}\n{entry['input']}"
