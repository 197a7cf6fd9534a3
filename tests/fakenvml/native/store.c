/* The state file: read when it changed, changed under a lock.
 *
 * The file is replaced, never written in place, so a reader sees one machine or the next. The file last read
 * stays open: its inode cannot be reused, and so a new file is always seen as new.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

static char path[4096];
static struct stat seen;
static int held = -1;
static Machine *current;

void state_open(void) {
    const char *wanted = getenv("GPUFLEET_FAKE_NVML");
    snprintf(path, sizeof path, "%s", wanted ? wanted : "");
}

static char *read_all(int file, off_t size) {
    char *text = malloc((size_t)size + 1);
    if (!text)
        return NULL;
    size_t length = 0;
    ssize_t got;
    while (length < (size_t)size && (got = read(file, text + length, (size_t)size - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    return text;
}

static double modified(const struct stat *status) {
    return (double)status->st_mtim.tv_sec + (double)status->st_mtim.tv_nsec / 1e9;
}

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

const Machine *state_refresh(void) {
    struct stat now;
    if (stat(path, &now) == 0 && current && same_file(&now, &seen))
        return current;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    machine_free(current);
    current = NULL;
    if (held >= 0)
        close(held);
    held = file;
    if (file < 0 || fstat(file, &seen) != 0)
        return NULL;
    char *text = read_all(file, seen.st_size);
    current = text ? machine_parse(text, modified(&seen)) : NULL;
    return current;
}

nvmlReturn_t edit_begin(Edit *edit) {
    char name[sizeof path + 8];
    snprintf(name, sizeof name, "%s.lock", path);
    *edit = (Edit){.lock = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666)};
    if (edit->lock < 0 || flock(edit->lock, LOCK_EX) != 0)
        return edit_end(edit, NVML_UNKNOWN);
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0 && fstat(file, &status) == 0) {
        edit->text = read_all(file, status.st_size);
        char *copy = edit->text ? strdup(edit->text) : NULL;
        edit->machine = copy ? machine_parse(copy, modified(&status)) : NULL;
    }
    if (file >= 0)
        close(file);
    return edit->machine ? NVML_SUCCESS : edit_end(edit, NVML_DRIVER_NOT_LOADED);
}

static bool starts_with(const char *line, const char *prefix) {
    while (*prefix) {
        if (*prefix == ' ') {
            if (*line != ' ' && *line != '\t')
                return false;
            line += strspn(line, " \t");
            prefix++;
        } else if (*line++ != *prefix++) {
            return false;
        }
    }
    return *line == '\0' || strchr(" \t\r\n", *line);
}

void edit_remove(Edit *edit, const char *prefix) {
    for (char *line = edit->text; *line;) {
        char *next = line + strcspn(line, "\n");
        next += *next == '\n';
        if (starts_with(line + strspn(line, " \t"), prefix))
            memmove(line, next, strlen(next) + 1);
        else
            line = next;
    }
}

nvmlReturn_t edit_append(Edit *edit, const char *format, ...) {
    char line[512];
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    size_t length = strlen(edit->text);
    char *larger = realloc(edit->text, length + strlen(line) + 3);
    if (!larger)
        return NVML_MEMORY;
    edit->text = larger;
    const char *gap = length && larger[length - 1] != '\n' ? "\n" : "";
    sprintf(larger + length, "%s%s\n", gap, line);
    return NVML_SUCCESS;
}

static nvmlReturn_t replace_file(const char *text) {
    char name[sizeof path + 16];
    snprintf(name, sizeof name, "%s.%ld", path, (long)getpid());
    FILE *file = fopen(name, "we");
    if (!file)
        return NVML_UNKNOWN;
    bool written = fputs(text, file) >= 0;
    written = fclose(file) == 0 && written;
    if (written && rename(name, path) == 0)
        return NVML_SUCCESS;
    unlink(name);
    return NVML_UNKNOWN;
}

nvmlReturn_t edit_end(Edit *edit, nvmlReturn_t status) {
    if (status == NVML_SUCCESS)
        status = replace_file(edit->text);
    if (edit->lock >= 0)
        close(edit->lock);
    free(edit->text);
    machine_free(edit->machine);
    *edit = (Edit){.lock = -1};
    return status;
}
