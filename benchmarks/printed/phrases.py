"""What the boilerplate of a printed article says, by kind."""

# What the boilerplate says: a kind, then its phrases. "//" parts what stands left from what stands right.
_PHRASES = """
site: The Open Reference | Commonplace Digest | The Reading Room Papers | Harbourlight Review | Paper Lantern Monthly |
The Footnote Gazette | Marginalia Reports | Almanac of Plain Things | The Long Shelf

topic: A short history of lighthouses | How bridges are tested | The vocabulary of maps | Reading old weather diaries |
Why ferries are double-ended | What a census can't count | The paper trade in small towns | Keeping bees on flat roofs
| A field guide to railway clocks

journal head: {site} // Vol. {volume}, No. {issue}, {year} | {title} // {site} | {site} {volume} ({issue}), {year} //
Article {id} | {site} – Review article // {title} | {title} // {volume}:{issue} | Contents lists available at {host} //
{site}

report head: {title} // {site} | {site} // Report no. {id} | {site} – Briefing series // {title} | {title} – final
version // {date} | Working paper {id} // {title} | {site} / Reference reports / {title}

magazine head: {date}, {time} // {title} – {site} | {title} | {site} // {date} {time} | {site} – {title} // printed
{date} | {title} · {site} // Print edition | {time} {date} // {site}: {title} | {site} > Articles > {title} // {date}

journal foot: {host}/articles/{id} // Page {page} of {pages} | © {year} {site} // {page} | {site}, {year}, {volume},
{issue} // p. {page} of {pages} | Article {id} // {page} | doc. {id}, published {date} // {page}/{pages} | {title} //
Seite / Page {page} of {pages}

report foot: {site} | Report {id} // {date} | © {year} {site}. All rights reserved. | File: report-{id}-final.pdf //
version {issue}.{volume} | {site} reports, {year} // {title} | Printed on {date} at {time} // {host}

magazine foot: https://{host}/articles/{slug} // {page}/{pages} | https://{host}/{year}/{slug}?print=1 //
{page}/{pages} | {host}/a/{id} // Page {page} of {pages} | https://www.{host}/read/{slug}.html // {page} of {pages} |
https://{host}/topics/{slug}?id={id}&ref=print // {page}/{pages} | {host} > {slug} > print view // Page {page}

page number: {page} | – {page} – | Page {page} of {pages} | [{page}] | page {page} | {page} / {pages} | Sheet {page} of
{pages}

download: Downloaded from {host} on {date}, {time}. All rights reserved. | This copy was downloaded from {host} by a
library reader on {date}. For personal use only; further copying needs permission. | Downloaded by a guest from address
192.0.2.{volume} on {date} – see the terms and conditions of use at {host}/terms. | Copyright {year} {site}. Delivered
through {host} on {date} to a registered reader. No further reproduction or distribution. | {site} – downloaded {date}.
Not for resale. | Provided by the reading service of {host} on {date}. Use is subject to the licence printed on page 1.

confidential: CONFIDENTIAL – for members of the reading circle only | Restricted: not for circulation outside {site} |
DRAFT FOR COMMENT – do not quote or cite | Internal use only. Copies must be returned to the {site} archive. | In
confidence – distribution list {id} | Embargoed until {date}

cookies: We use cookies to improve your visit to {host}. By going on you agree to our cookie notice. Accept all,
Settings | This site uses cookies. Some are needed, others help us to count readers. Manage preferences | You have {n}
free articles left this month. Log in or subscribe to read without limits. | Your choices about cookies on {host}:
necessary (always on), statistics (off), partners (off). Save choices | {site} and {m} partners store information on
your device. Reject all / Accept all / More options | Reading offline? Save this page to your list.

licence: This article is distributed under the terms of an open licence, which permits use and distribution in any
medium, provided that the source is credited. | Open access. Images are not covered by the licence unless the credit
line says so. | Reprints and permissions: write to permissions@{host} and quote article {m}. | Publisher's note: {site}
remains neutral with regard to boundaries shown in maps. | Correction ({day}): an earlier version carried a wrong page
number in note {n}. | How to cite: "{title}", {site} {volume} ({issue}), {year}, article {id}. | Received {day};
revised {day}; published online {date}. | No part of this publication may be stored or passed on in any form without
written permission of {site}. | The views given here need not be those of {site}. Errors should be reported to
desk@{host}.

short: Continued on next page | Article continues below | Related: {other} | See also: {other}, page {m} | Read more:
{other} ({n} min read) | Back to top | Share this article Print Save for later | Listen to this article ({n} min {m} s)
| Show comments ({m}) | This page was last checked on {day}. | More on this topic: {other} | Story continues after the
picture | Jump to section {n} | Rate this page: yes / no ({m} votes) | [ Turn to page {m} ] | Recommended for you:
{other} | {m} people are reading this | Go to: {other}

ad label: ADVERTISEMENT | Advertisement – article continues below | Sponsored | PROMOTION | Paid content | Announcement

advert: Save {n}0 per cent on a yearly subscription until {day}. | New in our shop: the {past} wall calendar, now
{price}. | Autumn lectures begin on {day}; seats from {price}. | Give a friend {n} issues for the price of one. | Our
winter catalogue lists {m} titles on {other}. Order a copy for {price}. | Learn a language in {n} weeks: evening
classes from {price} a month. | Walking boots, maps and rain jackets: {n}0 per cent off this week. | Hearing tests
without appointment, every weekday from {n} o'clock. | Visit the map fair on {day}. Entry {price}, children free.

newsletter: Sign up for our newsletter and get {n} stories every week. | Get the best of {site} in your inbox. No
advertising, cancel at any time. | Our weekly letter: {m},000 readers can't be wrong. | Never miss an article like
"{other}". | Stay informed: one e-mail on {n} mornings a month. | Join our mailing list before {day} and read the
archive free for {n} weeks.

button: Enter your e-mail address [Subscribe] | Yes, send me the letter | [ Sign up ] No thanks | Your e-mail: ________
| Subscribe now | Privacy notice: we do not pass on addresses.

related label: Related articles | Most read | In this issue | You may also like | From the archive | Readers also
opened

related: {other} | {n}. {other} | {other} ({m} comments) | {other} – {day} | {other}, p. {m} | » {other} | {other} [{n}
min]

teaser label: From our other pages: {other} | ALSO IN {site} | More from section {n} | Previously | Editor's choice |
Yesterday on {host}

teaser: {teaser}

facts label: Key facts | At a glance | About this page | In brief | Article metrics | Background

fact: Views: {m},{m} | Last change: {day} | Reading time: {n} minutes | Section {n} of 9 | First entered in {past} |
Cited by {m} | Language: English | Shelf mark {m}/{n} | Words: {n},{m} | Pictures: {n} | Printed copies: {m} | Editors:
{n}

caption: Figure {n}. General view, looking north; photograph from the archive, {past}. | Fig. {n}: Changes over time,
{past} to {year}. Source: {site}, own figures. | Picture {n} of {m} – click to enlarge | Table {n} is available in the
online version. | Above: a postcard sent in {past}. Collection of {site}, no. {m}. | Map {n}. Places named in the text.
Scale 1 : {m},000. | Photo: {site} / archive no. {m} | Figure {n}. Sketch (not to scale), redrawn after a plan of
{past}. | Left: the same place in {past}. Picture desk, {day}.

section: Background | Overview | Further detail | Description | Context | Later developments | Discussion | Particulars
"""
PHRASES = {
    kind: [" ".join(phrase.split()) for phrase in phrases.split(" | ")]
    for kind, phrases in (" ".join(part.split()).split(": ", 1) for part in _PHRASES.strip().split("\n\n"))
}

# What may interrupt the text: role, whether it stands in a box, and the phrases it is made of (kind, fewest, most).
NOTES = {
    "advert": ("notice", True, (("ad label", 1, 1), ("advert", 1, 3))),
    "newsletter": ("notice", True, (("newsletter", 1, 2), ("button", 1, 1))),
    "related": ("sidebar", True, (("related label", 1, 1), ("related", 2, 5))),
    "teaser": ("sidebar", True, (("teaser label", 1, 1), ("teaser", 1, 1))),
    "facts": ("sidebar", True, (("facts label", 1, 1), ("fact", 2, 5))),
    "caption": ("caption", False, (("caption", 1, 1),)),
    "licence": ("notice", False, (("licence", 1, 2),)),
    "short": ("notice", False, (("short", 1, 2),)),
    "cookies": ("notice", True, (("cookies", 1, 1),)),
}
KINDS = {  # the notes of each style, the frequent ones named twice
    "journal": "licence licence caption caption short related teaser facts advert".split(),
    "report": "teaser teaser related facts facts licence short caption advert newsletter".split(),
    "magazine": "advert advert newsletter related related teaser caption short short facts cookies".split(),
}
