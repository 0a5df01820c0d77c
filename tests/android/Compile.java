import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.jetbrains.kotlin.cli.jvm.K2JVMCompiler;

/** Compiles several sets of Kotlin sources in one JVM, whose start and warming up cost more than the sources. */
public class Compile {
    /** Each job is a file with one compiler argument a line; JOB.out gets the exit code and what was said. */
    public static void main(String[] jobs) throws Exception {
        for (String job : jobs) {
            var said = new ByteArrayOutputStream();
            var arguments = Files.readAllLines(Path.of(job)).toArray(new String[0]);
            var code = new K2JVMCompiler().exec(new PrintStream(said, true), arguments);
            Files.writeString(Path.of(job + ".out"), code.getCode() + "\n" + said);
        }
        System.exit(0);
    }
}
