package dev.samexport.core

/** An object of a JSON text, with typed access; every accessor throws [IllegalArgumentException] naming the key. */
class JsonObject(private val values: Map<String, Any?>) {
    val keys: Set<String> get() = values.keys

    fun text(key: String): String = typed(key)

    fun flag(key: String): Boolean = typed(key)

    fun number(key: String): Double = typed(key)

    fun int(key: String): Int {
        val value = number(key)
        require(value == Math.rint(value) && value in -2147483648.0..2147483647.0) { "$key is no whole number: $value" }
        return value.toInt()
    }

    fun child(key: String): JsonObject = objectOf(key, values[key])

    /** Null where the key is absent or null. */
    fun optional(key: String): JsonObject? = values[key]?.let { objectOf(key, it) }

    fun children(key: String): List<JsonObject> = list(key).map { objectOf(key, it) }

    fun texts(key: String): List<String> =
        list(key).map { it as? String ?: throw IllegalArgumentException("$key holds something else than texts") }

    fun numbers(key: String): DoubleArray =
        list(key).map { it as? Double ?: throw IllegalArgumentException("$key holds something else than numbers") }
            .toDoubleArray()

    fun ints(key: String): List<Int> = numbers(key).map { it.toInt() }

    private fun list(key: String): List<*> = typed(key)

    private fun objectOf(key: String, value: Any?): JsonObject =
        value as? JsonObject ?: throw IllegalArgumentException("$key is no object")

    private inline fun <reified T> typed(key: String): T =
        values[key] as? T ?: throw IllegalArgumentException("$key is missing or of another type")
}

/**
 * Read a JSON text whose top is an object: objects become [JsonObject], arrays [List], numbers [Double].
 *
 * Throws [IllegalArgumentException] with the position where the text is not JSON.
 */
fun parseJson(text: String): JsonObject {
    val reader = JsonReader(text)
    val value = reader.value(0)
    reader.end()
    return value as? JsonObject ?: throw IllegalArgumentException("the JSON text is no object")
}

private class JsonReader(private val text: String) {
    private var at = 0

    fun value(depth: Int): Any? {
        if (depth > MAX_DEPTH) fail("nested too deeply")
        return when (val next = peek()) {
            '{' -> objectValue(depth)
            '[' -> arrayValue(depth)
            '"' -> string()
            't' -> literal("true", true)
            'f' -> literal("false", false)
            'n' -> literal("null", null)
            else -> if (next == '-' || next in '0'..'9') number() else fail("unexpected '$next'")
        }
    }

    fun end() {
        skipSpace()
        if (at != text.length) fail("more text after the end")
    }

    private fun objectValue(depth: Int): JsonObject {
        val found = LinkedHashMap<String, Any?>()
        items('{', '}') {
            if (peek() != '"') fail("a key is a text")
            val key = string()
            expect(':')
            if (key in found) fail("the key $key repeats")
            found[key] = value(depth + 1)
        }
        return JsonObject(found)
    }

    private fun arrayValue(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        items('[', ']') { found.add(value(depth + 1)) }
        return found
    }

    private inline fun items(open: Char, close: Char, item: () -> Unit) {
        expect(open)
        if (peek() == close) {
            at++
            return
        }
        while (true) {
            item()
            if (peek() == close) {
                at++
                return
            }
            expect(',')
        }
    }

    private fun string(): String {
        expect('"')
        val found = StringBuilder()
        while (true) {
            when (val next = take()) {
                '"' -> return found.toString()
                '\\' -> found.append(escaped())
                else -> if (next < ' ') fail("a control character in a text") else found.append(next)
            }
        }
    }

    private fun escaped(): Char = when (val next = take()) {
        '"', '\\', '/' -> next
        'b' -> '\b'
        'f' -> '\u000c'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'u' -> {
            val digits = text.substring(at, minOf(at + 4, text.length))
            if (digits.length < 4 || digits.any { Character.digit(it, 16) < 0 }) fail("a broken escape")
            at += 4
            digits.toInt(16).toChar()
        }
        else -> fail("an unknown escape")
    }

    private fun number(): Double {
        val match = NUMBER.find(text, at)
        if (match == null || match.range.first != at) fail("a broken number")
        at = match.range.last + 1
        return match.value.toDouble()
    }

    private fun literal(word: String, value: Any?): Any? {
        if (!text.startsWith(word, at)) fail("an unknown word")
        at += word.length
        return value
    }

    private fun peek(): Char {
        skipSpace()
        return if (at < text.length) text[at] else fail("the text ends too early")
    }

    private fun take(): Char = if (at < text.length) text[at++] else fail("the text ends too early")

    private fun expect(wanted: Char) {
        if (peek() != wanted) fail("expected '$wanted'")
        at++
    }

    private fun skipSpace() {
        while (at < text.length && text[at] in " \t\r\n") at++
    }

    private fun fail(reason: String): Nothing = throw IllegalArgumentException("not JSON at character $at: $reason")

    private companion object {
        const val MAX_DEPTH = 64
        val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?")
    }
}
